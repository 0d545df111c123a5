-- Sets a field of a gate that exists (a partial gate would look like a whole one).
--
-- KEYS  1 meta
-- ARGV  1 command (HSET | HINCRBY), 2 field, 3 value
-- reply 1, or 0 when there is no gate
if redis.call('HEXISTS', KEYS[1], 'starts') == 0 then return 0 end
redis.call(ARGV[1], KEYS[1], ARGV[2], ARGV[3])
return 1
