-- Takes delayed tasks back before they run.
--
-- KEYS  1 delayed, 2 envelopes, 3 meta, then a record per task, last one that is never there
-- ARGV  1 record's life (ms), then per task: key, record
-- reply how many were taken back
local taken = 0
for i = 4, #KEYS - 1 do
  local key = ARGV[2 * i - 6]
  if redis.call('ZREM', KEYS[1], key) == 1 then
    redis.call('HDEL', KEYS[2], key)
    -- An entry of it that is in the stream, or runs, keeps its field.
    if string.find(redis.call('HGET', KEYS[3], key) or '', '^%d+ %d+ %-') then redis.call('HDEL', KEYS[3], key) end
    redis.call('SET', KEYS[i], ARGV[2 * i - 5], 'PX', ARGV[1])
    taken = taken + 1
  end
end
return taken
