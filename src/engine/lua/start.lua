-- Marks the records of delivered tasks as started.
--
-- KEYS  one record per task
-- ARGV  1 now (ms), 2 consumer, then per task: attempt
for i, record in ipairs(KEYS) do
  -- a record that has expired stays gone: without this it would come back without an expiry
  if redis.call('EXISTS', record) == 1 then
    redis.call('HSET', record, 'state', 'STARTED', 'started_at', ARGV[1], 'worker', ARGV[2], 'attempt', ARGV[i + 2])
  end
end
return 0
