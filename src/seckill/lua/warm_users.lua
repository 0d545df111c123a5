-- Writes who holds a unit, while the gate is shut and this process is the one that builds it.
--
-- KEYS  1 lock, 2 meta
-- ARGV  1 the lock's token, 2 the lock's life from now (ms), 3.. pairs of a user's field and what it holds, 500 at most
-- reply 1, or 0 when somebody else builds or has built it
if redis.call('GET', KEYS[1]) ~= ARGV[1] or redis.call('HEXISTS', KEYS[2], 'starts') == 1 then return 0 end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
redis.call('HSET', KEYS[2], unpack(ARGV, 3))
return 1
