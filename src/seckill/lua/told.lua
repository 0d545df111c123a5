-- Keeps, or gives back, the right to tell the gates what they may have forgotten; and notes what was told, unless something
-- else was noted since it was read.
--
-- KEYS  1 the right, 2 what was told
-- ARGV  1 token of the right, 2 its life from now (ms; 0: it is given back), then, to note it: 3 what was told before ('':
--       nothing), 4 what is told now
-- reply 1, or 0 when the right was lost
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if ARGV[4] and (redis.call('GET', KEYS[2]) or '') == ARGV[3] then redis.call('SET', KEYS[2], ARGV[4]) end
if ARGV[2] == '0' then
  redis.call('DEL', KEYS[1])
else
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return 1
