-- Gives deliveries back unworked: any worker may take them over at once, and no delivery is counted for them.
--
-- KEYS  1 stream
-- ARGV  1 group, 2 consumer, 3 idle (ms), then per delivery: entry id, deliveries before this one
for i = 4, #ARGV, 2 do
  local pending = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1)
  if pending[1] and pending[1][2] == ARGV[2] then
    redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[i], 'IDLE', ARGV[3], 'RETRYCOUNT', ARGV[i + 1], 'JUSTID')
  end
end
return 0
