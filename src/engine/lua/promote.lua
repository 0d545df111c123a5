-- Moves delayed tasks whose time has come to the stream, the earliest first.
--
-- KEYS  1 delayed, 2 envelopes, 3 stream, 4 meta
-- ARGV  1 now (ms), 2 at most so many, 3 what the keys of records begin with (same hash tag)
-- reply {moved, milliseconds until the next one is due (-1: none waits)}
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], 'LIMIT', 0, ARGV[2])
for _, key in ipairs(due) do
  local text = redis.call('HGET', KEYS[2], key)
  redis.call('ZREM', KEYS[1], key)
  if text then
    redis.call('HDEL', KEYS[2], key)
    local envelope = cjson.decode(text)
    local seq = redis.call('HINCRBY', KEYS[4], 'seq', 1)
    local record = ARGV[3] .. key
    if redis.call('EXISTS', record) == 1 then
      redis.call('HSET', record, 'seq', seq, 'at', ARGV[1])
    end
    redis.call('XADD', KEYS[3], '*', 'v', 1, 'key', key, 'name', envelope.name, 'args', envelope.args, 'attempt', envelope.attempt)
  end
end
local next = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
if next[2] then
  return { #due, math.max(0, math.ceil(tonumber(next[2]) - tonumber(ARGV[1]))) }
end
return { #due, -1 }
