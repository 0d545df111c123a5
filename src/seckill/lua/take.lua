-- Takes units off sale (the stock is being lowered), all or none.
--
-- KEYS  1 meta
-- ARGV  1 how many
-- reply 1 taken, 0 not so many left, -1 no gate
local stock = redis.call('HGET', KEYS[1], 'stock')
if not stock then return -1 end
if tonumber(stock) < tonumber(ARGV[1]) then return 0 end
redis.call('HINCRBY', KEYS[1], 'stock', -tonumber(ARGV[1]))
return 1
