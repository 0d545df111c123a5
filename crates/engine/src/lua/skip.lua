-- Ends a task that comes after others and will not be enqueued, because of how they ended. One that something is known of
-- stays as it is.
--
-- KEYS  1 meta, 2 record, 3 ended
-- ARGV  1 key, 2 record, 3 life of both (ms), 4 done channel, 5 name, 6 state, 7 entries of ended kept
-- reply 1 when it has ended so, else 0
local key = ARGV[1]
if redis.call('HEXISTS', KEYS[1], key) == 1 or redis.call('EXISTS', KEYS[2]) == 1 then return 0 end
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[7], '*', 'n', ARGV[5], 's', ARGV[6], 't', key)
redis.call('PEXPIRE', KEYS[3], ARGV[3])
redis.call('PUBLISH', ARGV[4], key)
return 1
