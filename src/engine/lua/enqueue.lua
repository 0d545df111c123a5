-- Enqueues tasks, each unique by its key.
--
-- A task whose key is on its way already (not ended, entered less than `unique` ms ago) is left as it is. A task with
-- a due time goes to the delayed set and replaces what waits there under the same key.
--
-- KEYS  1 stream, 2 delayed, 3 envelopes, 4 meta, 5.. one record per task
-- ARGV  1 now (ms), 2 record's life (ms), 3 unique (ms), then per task: key, name, args, due (ms, 0 = now)
-- reply how many were taken on
local now = tonumber(ARGV[1])
local ttl = tonumber(ARGV[2])
local unique = tonumber(ARGV[3])
local taken = 0
for i = 5, #KEYS do
  local at = 4 + (i - 5) * 4
  local key, name, args, due = ARGV[at], ARGV[at + 1], ARGV[at + 2], tonumber(ARGV[at + 3])
  local known = redis.call('HMGET', KEYS[i], 'state', 'at')
  local ended = known[1] == 'SUCCESS' or known[1] == 'FAILURE' or known[1] == 'REVOKED'
  local fresh = known[1] and not ended and known[2] and now - tonumber(known[2]) < unique
  if due > 0 then
    redis.call('HSET', KEYS[3], key, cjson.encode({ name = name, args = args, attempt = 1 }))
    redis.call('ZADD', KEYS[2], due, key)
    redis.call('DEL', KEYS[i])
    redis.call('HSET', KEYS[i], 'state', 'PENDING', 'name', name, 'at', due)
    redis.call('PEXPIRE', KEYS[i], math.max(ttl, due - now + ttl))
    taken = taken + 1
  elseif not fresh then
    local seq = redis.call('HINCRBY', KEYS[4], 'seq', 1)
    redis.call('DEL', KEYS[i])
    redis.call('HSET', KEYS[i], 'state', 'PENDING', 'name', name, 'at', now, 'seq', seq)
    redis.call('PEXPIRE', KEYS[i], ttl)
    redis.call('XADD', KEYS[1], '*', 'v', 1, 'key', key, 'name', name, 'args', args, 'attempt', 1)
    taken = taken + 1
  end
end
return taken
