-- Changes what places hold, each only while it holds what it is said to.
--
-- KEYS  1 meta
-- ARGV  1 what they are to hold, then pairs of user and what the place holds
-- reply how many were changed
local changed = {}
for i = 2, #ARGV, 2 do
  local place = 'u' .. ARGV[i]
  local tries, held = string.match(redis.call('HGET', KEYS[1], place) or '', '^(%d+):(.*)$')
  if tries and held == ARGV[i + 1] then
    changed[#changed + 1], changed[#changed + 2] = place, tries .. ':' .. ARGV[1]
  end
end
if #changed > 0 then redis.call('HSET', KEYS[1], unpack(changed)) end
return #changed / 2
