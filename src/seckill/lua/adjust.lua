-- Changes the gate's stock if nothing was admitted or returned since it was looked at.
--
-- KEYS  1 gate, 2 meta
-- ARGV  1 stock as seen, 2 tasks admitted as seen, 3 change
-- reply 1, or 0 when it has moved on
if redis.call('HGET', KEYS[1], 'stock') ~= ARGV[1] then return 0 end
if (redis.call('HGET', KEYS[2], 'seq') or '0') ~= ARGV[2] then return 0 end
redis.call('HINCRBY', KEYS[1], 'stock', ARGV[3])
return 1
