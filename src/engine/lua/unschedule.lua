-- Takes delayed tasks back before they run.
--
-- KEYS  1 delayed, 2 envelopes, 3.. one record per task
-- ARGV  one key per task
-- reply how many were taken back
local taken = 0
for i, key in ipairs(ARGV) do
  if redis.call('ZREM', KEYS[1], key) == 1 then
    redis.call('HDEL', KEYS[2], key)
    if redis.call('EXISTS', KEYS[i + 2]) == 1 then
      redis.call('HSET', KEYS[i + 2], 'state', 'REVOKED')
    end
    taken = taken + 1
  end
end
return taken
