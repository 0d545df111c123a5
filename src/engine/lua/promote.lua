-- Moves delayed tasks whose time has come to the stream, the earliest first.
--
-- KEYS  1 delayed, 2 envelopes, 3 stream, 4 meta
-- ARGV  1 now (ms), 2 at most so many, 3 life of meta (ms)
-- reply {moved, milliseconds until the next one is due (-1: none waits)}
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], 'LIMIT', 0, ARGV[2])
if #due > 0 then
  local texts = redis.call('HMGET', KEYS[2], unpack(due))
  local seq = tonumber(redis.call('HGET', KEYS[4], 'seq') or 0)
  local entered = {}
  for i, key in ipairs(due) do
    if texts[i] then
      seq = seq + 1
      entered[#entered + 1] = key
      entered[#entered + 1] = seq .. ' ' .. ARGV[1]
      redis.call('XADD', KEYS[3], '*', 'e', texts[i])
    end
  end
  redis.call('ZREM', KEYS[1], unpack(due))
  redis.call('HDEL', KEYS[2], unpack(due))
  if #entered > 0 then
    redis.call('HSET', KEYS[4], 'seq', seq, unpack(entered))
    if redis.call('PTTL', KEYS[4]) < tonumber(ARGV[3]) then redis.call('PEXPIRE', KEYS[4], ARGV[3]) end
  end
end
local next = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
if next[2] then
  return { #due, math.max(0, math.ceil(tonumber(next[2]) - tonumber(ARGV[1]))) }
end
return { #due, -1 }
