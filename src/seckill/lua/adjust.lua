-- Changes the gate's stock if nothing was admitted or returned since it was looked at.
--
-- KEYS  1 meta
-- ARGV  1 stock as seen, 2 tasks admitted as seen, 3 change
-- reply 1, or 0 when it has moved on
local seen = redis.call('HMGET', KEYS[1], 'stock', 'seq')
if seen[1] ~= ARGV[1] or (seen[2] or '0') ~= ARGV[2] then return 0 end
redis.call('HINCRBY', KEYS[1], 'stock', ARGV[3])
return 1
