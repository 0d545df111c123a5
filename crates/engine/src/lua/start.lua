-- Writes the records of tasks that run; one that has ended meanwhile waits no more and keeps its record.
--
-- KEYS  1 meta, 2.. one record per task
-- ARGV  1 record's life (ms), then per task: key, record
for i = 2, #KEYS do
  if redis.call('HEXISTS', KEYS[1], ARGV[2 * i - 2]) == 1 then
    redis.call('SET', KEYS[i], ARGV[2 * i - 1], 'PX', ARGV[1])
  end
end
return 0
