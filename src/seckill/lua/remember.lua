-- Writes who holds a unit where the gate has forgotten it: a Redis that failed over may have lost a user's place, or the
-- last of his tries. A place that names a task stays: the task may be newer than what MySQL says. One that says that the
-- user has the course gives way to a unit that he holds, and to nothing else.
--
-- KEYS  1 meta
-- ARGV  pairs of user and place
-- reply how many were written
if redis.call('HEXISTS', KEYS[1], 'starts') == 0 then return 0 end
local written = 0
for i = 1, #ARGV, 2 do
  local user, place = 'u' .. ARGV[i], ARGV[i + 1]
  local known = redis.call('HGET', KEYS[1], user)
  local own = known and string.match(place, ':.') and string.match(known, '^(%d+):owned$')
  local tries = known and tonumber(own or string.match(known, '^(%d+):$'))
  if not known or (tries and tries < tonumber(string.match(place, '^%d+'))) then
    redis.call('HSET', KEYS[1], user, place)
    written = written + 1
  end
end
return written
