-- A worker's sign of life. By the server's clock, so that the processes' own do not matter.
--
-- KEYS  1 index of the workers, 2 the worker
-- ARGV  1 instance, 2 what it says, 3 how long that counts (ms)
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
redis.call('ZADD', KEYS[1], string.format('%d', now), ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('(%d', now - ARGV[3]))
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 0
