-- Writes who holds a unit where the gate has forgotten it: a Redis that failed over may have lost a user's place, or the
-- last of his tries. A place that names a task stays: the task may be newer than what MySQL says. One that says that the
-- user has the course gives way to a unit that he holds, and to nothing else.
--
-- KEYS  1 meta
-- ARGV  the fields of n users, then what each holds; 500 users at most
-- reply how many were written
if redis.call('HEXISTS', KEYS[1], 'starts') == 0 then return 0 end
local n = #ARGV / 2
local known, written = redis.call('HMGET', KEYS[1], unpack(ARGV, 1, n)), {}
for i = 1, n do
  local place, was = ARGV[n + i], known[i]
  local own = was and string.match(place, ':.') and string.match(was, '^(%d+):owned$')
  local tries = was and tonumber(own or string.match(was, '^(%d+):$'))
  if not was or (tries and tries < tonumber(string.match(place, '^%d+'))) then
    written[#written + 1], written[#written + 2] = ARGV[i], place
  end
end
if #written > 0 then redis.call('HSET', KEYS[1], unpack(written)) end
return #written / 2
