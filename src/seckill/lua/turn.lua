-- Takes, or keeps, the turn to look after the gates for all processes.
--
-- KEYS  1 the turn
-- ARGV  1 who asks, 2 how long it is theirs (ms; 0: they give it back), 3 a turn lasts at most (ms): one that lasts longer was
--       written by a server whose clock was ahead, and holds no more, 4 '1': only what is theirs is kept or given back
-- reply 1 when it is theirs
local holder = redis.call('GET', KEYS[1])
if ARGV[4] == '1' and holder ~= ARGV[1] then return 0 end
local left = holder and redis.call('PTTL', KEYS[1])
if holder and holder ~= ARGV[1] and left >= 0 and left <= tonumber(ARGV[3]) then return 0 end
if ARGV[2] ~= '0' then
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
else
  redis.call('DEL', KEYS[1])
end
return 1
