-- Enqueues tasks, each unique by its key.
--
-- A task whose key is on its way already (it waits, since less than `unique` ms) is left as it is. A task with a due
-- time goes to the delayed set and replaces what waits there under the same key.
--
-- KEYS  1 stream, 2 delayed, 3 envelopes, 4 meta, 5.. one record per task
-- ARGV  1 now (ms), 2 unique (ms), 3 life of meta (ms), then per task: key, envelope, due (ms, 0 = now)
-- reply how many were taken on
local now, unique = tonumber(ARGV[1]), tonumber(ARGV[2])
local tasks = #KEYS - 4
local keys = {}
for i = 1, tasks do
  keys[i] = ARGV[1 + 3 * i]
end
local waiting = redis.call('HMGET', KEYS[4], unpack(keys))
local seq, seen = nil, {}
local entered, due_at, envelopes, old = {}, {}, {}, {}
for i = 1, tasks do
  local key, envelope, due = keys[i], ARGV[2 + 3 * i], tonumber(ARGV[3 + 3 * i])
  local since = seen[key] or (waiting[i] and tonumber(string.match(waiting[i], ' (%d+)')))
  if due > 0 then
    due_at[#due_at + 1] = due
    due_at[#due_at + 1] = key
    envelopes[#envelopes + 1] = key
    envelopes[#envelopes + 1] = envelope
    old[#old + 1] = KEYS[4 + i]
  elseif not since or now - since >= unique then
    seq = (seq or tonumber(redis.call('HGET', KEYS[4], 'seq') or 0)) + 1
    seen[key] = now
    entered[#entered + 1] = key
    entered[#entered + 1] = seq .. ' ' .. ARGV[1]
    old[#old + 1] = KEYS[4 + i]
    redis.call('XADD', KEYS[1], '*', 'e', envelope)
  end
end
if #due_at > 0 then
  redis.call('ZADD', KEYS[2], unpack(due_at))
  redis.call('HSET', KEYS[3], unpack(envelopes))
end
if #entered > 0 then
  redis.call('HSET', KEYS[4], 'seq', seq, unpack(entered))
  if redis.call('PTTL', KEYS[4]) < tonumber(ARGV[3]) then redis.call('PEXPIRE', KEYS[4], ARGV[3]) end
end
if #old > 0 then
  redis.call('DEL', unpack(old))
end
return #old
