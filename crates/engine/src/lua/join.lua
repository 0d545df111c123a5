-- A member of a group has ended: its result is kept, and the last one to end lets the callback go.
--
-- KEYS  1 group
-- ARGV  1 member's number, 2 its result (JSON), 3 1 when it failed, 4 members, 5 life of the group (ms)
-- reply {what, results by member's number}: 'waiting'; 'done' (results follow); 'failed' (a member did)
if redis.call('HSETNX', KEYS[1], ARGV[1], ARGV[2]) == 1 and ARGV[3] == '1' then
  redis.call('HSET', KEYS[1], 'failed', ARGV[1])
end
redis.call('PEXPIRE', KEYS[1], ARGV[5])
if redis.call('HEXISTS', KEYS[1], 'failed') == 1 then return { 'failed', {} } end
if redis.call('HLEN', KEYS[1]) < tonumber(ARGV[4]) then return { 'waiting', {} } end
local numbers = {}
for i = 1, tonumber(ARGV[4]) do
  numbers[i] = i - 1
end
return { 'done', redis.call('HMGET', KEYS[1], unpack(numbers)) }
