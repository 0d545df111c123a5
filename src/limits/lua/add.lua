-- Adds a request to each bucket, or to none when one of them is full. A bucket is the instant at which it will be empty.
--
-- KEYS  the buckets
-- ARGV  1 now (µs)  2 1, or -1 to take one back; then for each bucket what one request adds (µs) and what it holds (µs)
-- reply {1 when it was added, then for each bucket for how long it is not empty (µs)}
local now, count = tonumber(ARGV[1]), tonumber(ARGV[2])
local empty, full = {}, false
for i, key in ipairs(KEYS) do
  empty[i] = math.max(tonumber(redis.call('GET', key) or now), now)
  local adds, holds = tonumber(ARGV[1 + 2 * i]), tonumber(ARGV[2 + 2 * i])
  if count > 0 and empty[i] + adds - now > holds then
    full = true
  end
end
local reply = {full and 0 or 1}
for i, key in ipairs(KEYS) do
  if not full then
    empty[i] = math.max(empty[i] + count * tonumber(ARGV[1 + 2 * i]), now)
    if empty[i] > now then
      redis.call('SET', key, string.format('%.0f', empty[i]), 'PX', math.ceil((empty[i] - now) / 1000) + 1000)
    else
      redis.call('DEL', key)
    end
  end
  reply[i + 1] = empty[i] - now
end
return reply
