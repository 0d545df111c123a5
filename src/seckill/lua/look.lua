-- What the gate holds and what is admitted but not placed, at one instant.
--
-- KEYS  1 gate, 2 meta, 3 stream, 4 delayed
-- reply {stock (-1: no gate), tasks admitted so far, admitted and not placed}
local stock = redis.call('HGET', KEYS[1], 'stock')
local seq = redis.call('HGET', KEYS[2], 'seq')
return { tonumber(stock or -1), tonumber(seq or 0), redis.call('XLEN', KEYS[3]) + redis.call('ZCARD', KEYS[4]) }
