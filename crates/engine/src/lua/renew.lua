-- Renews the lease on deliveries that this consumer still owns.
--
-- KEYS  1 stream
-- ARGV  1 group, 2 consumer, 3.. entry ids
-- reply how many are still owned
local owned = 0
for i = 3, #ARGV do
  local pending = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1)
  if pending[1] and pending[1][2] == ARGV[2] then
    -- JUSTID: resets the idle time, does not count as a delivery
    redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[i], 'JUSTID')
    owned = owned + 1
  end
end
return owned
