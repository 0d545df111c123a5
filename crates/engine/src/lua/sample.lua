-- How a queue's counters stand now, and how they stood up to a minute ago. By the server's clock, so that the processes'
-- own do not matter.
--
-- KEYS  1 meta, 2 samples
-- ARGV  1 milliseconds between two samples, 2 how long samples count (ms)
-- reply {now (ms), seq, done, oldest sample ('' when there is none)}
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local counts = redis.call('HMGET', KEYS[1], 'seq', 'done')
local seq, done = tonumber(counts[1] or 0), tonumber(counts[2] or 0)
local function at(sample)
  return tonumber(string.match(sample, '^%d+'))
end
local oldest = redis.call('LINDEX', KEYS[2], -1)
while oldest and now - at(oldest) > tonumber(ARGV[2]) do
  redis.call('RPOP', KEYS[2])
  oldest = redis.call('LINDEX', KEYS[2], -1)
end
local newest = redis.call('LINDEX', KEYS[2], 0)
if not newest or now - at(newest) >= tonumber(ARGV[1]) then
  redis.call('LPUSH', KEYS[2], string.format('%d %d %d', now, seq, done))
  redis.call('PEXPIRE', KEYS[2], ARGV[2])
end
return { now, seq, done, oldest or '' }
