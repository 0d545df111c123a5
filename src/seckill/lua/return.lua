-- Puts released units back on sale, each once: a unit comes back only while its user's place still names its task.
--
-- KEYS  1 meta
-- ARGV  pairs of user and task key
-- reply how many came back
if redis.call('HEXISTS', KEYS[1], 'starts') == 0 then return 0 end
local returned = 0
for i = 1, #ARGV, 2 do
  local user = 'u' .. ARGV[i]
  local known = redis.call('HGET', KEYS[1], user)
  if known then
    local colon = string.find(known, ':', 1, true)
    if string.sub(known, colon + 1) == ARGV[i + 1] then
      redis.call('HSET', KEYS[1], user, string.sub(known, 1, colon))
      redis.call('HINCRBY', KEYS[1], 'stock', 1)
      returned = returned + 1
    end
  end
end
return returned
