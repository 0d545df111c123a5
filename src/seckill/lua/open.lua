-- Opens the gate with what MySQL has left, less what is admitted and not placed yet. A pass removes it when the activity is
-- long over; the expiry is for a gate to which no pass came.
--
-- KEYS  1 lock, 2 meta, 3 stream, 4 delayed
-- ARGV  1 the lock's token, 2 stock left in MySQL, 3 starts (ms), 4 ends (ms), 5 closed (0 | 1), 6 limit, 7 keys' end (ms)
-- reply 1, or 0 when somebody else builds or has built it
if redis.call('GET', KEYS[1]) ~= ARGV[1] or redis.call('HEXISTS', KEYS[2], 'starts') == 1 then return 0 end
local admitted = redis.call('XLEN', KEYS[3]) + redis.call('ZCARD', KEYS[4])
redis.call('HSET', KEYS[2], 'stock', math.max(0, tonumber(ARGV[2]) - admitted),
  'starts', ARGV[3], 'ends', ARGV[4], 'closed', ARGV[5], 'limit', ARGV[6])
redis.call('PEXPIREAT', KEYS[2], ARGV[7])
redis.call('DEL', KEYS[1])
return 1
