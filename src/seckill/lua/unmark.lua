-- Takes the marks of those who have the course off a gate whose sale is over: everybody is told by now that it has ended.
--
-- KEYS  1 meta
-- ARGV  1 how far they are taken off then ('': not said yet), 2.. fields of users, 500 at most
-- reply how many were taken off
if redis.call('HEXISTS', KEYS[1], 'starts') == 0 then return 0 end
local gone, tried = {}, {}
local known = #ARGV > 1 and redis.call('HMGET', KEYS[1], unpack(ARGV, 2)) or {}
for i, place in ipairs(known) do
  local tries = place and string.match(place, '^(%d+):owned$')
  if tries == '0' then
    gone[#gone + 1] = ARGV[i + 1]
  elseif tries then
    tried[#tried + 1], tried[#tried + 2] = ARGV[i + 1], tries .. ':'
  end
end
if #gone > 0 then redis.call('HDEL', KEYS[1], unpack(gone)) end
if #tried > 0 then redis.call('HSET', KEYS[1], unpack(tried)) end
if ARGV[1] ~= '' then redis.call('HSET', KEYS[1], 'owners', ARGV[1]) end
return #gone + #tried / 2
