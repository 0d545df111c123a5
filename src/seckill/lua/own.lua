-- Writes who has the course, so that the gate refuses them without taking a unit. A place that names a task stays: its
-- placement says what becomes of it.
--
-- `marks` counts them, so that all gates together can be bounded.
--
-- KEYS  1 meta
-- ARGV  1 how far the owners are written then (a user, or `all`), 2.. users
-- reply how many fields the gate has; 0 without a gate
if redis.call('HEXISTS', KEYS[1], 'starts') == 0 then return 0 end
local changed = { 'owners', ARGV[1] }
local places = {}
for i = 2, #ARGV do
  places[#places + 1] = 'u' .. ARGV[i]
end
local known = #places > 0 and redis.call('HMGET', KEYS[1], unpack(places)) or {}
for i, place in ipairs(places) do
  local tries = not known[i] and '0' or string.match(known[i], '^(%d+):$')
  if tries then
    changed[#changed + 1], changed[#changed + 2] = place, tries .. ':owned'
  end
end
redis.call('HSET', KEYS[1], unpack(changed))
if #changed > 2 then redis.call('HINCRBY', KEYS[1], 'marks', #changed / 2 - 1) end
return redis.call('HLEN', KEYS[1])
