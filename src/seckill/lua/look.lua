-- What the gate holds and what is admitted but not placed, at one instant.
--
-- KEYS  1 meta, 2 stream, 3 delayed
-- reply {stock (-1: no gate), tasks admitted so far, admitted and not placed}
local seen = redis.call('HMGET', KEYS[1], 'stock', 'seq')
return { tonumber(seen[1] or -1), tonumber(seen[2] or 0), redis.call('XLEN', KEYS[2]) + redis.call('ZCARD', KEYS[3]) }
