-- Enqueues tasks, each unique by its key, and says of each whether it was taken on.
--
-- By the mode, one whose key is on its way already is
--   keep     left as it is; one that waits for its time is replaced by one with a time of its own
--   once     left as it is, also when it has ended, for as long as its once-key lives
--   replace  taken out, if no worker has it yet, and the new one added
--
-- After streams.lua.
--
-- KEYS  1 stream, 2 delayed, 3 envelopes, 4 meta, 5.. a record per task, then (once) a once-key per task, last
--       one that is never there
-- ARGV  1 how far the process's clock is from the machines' (ms; 0 but in tests), 2 unique (ms), 3 life of meta (ms),
--       4 group, 5 mode, 6 life of once-keys (ms), then per task: key, envelope, due (ms, 0 = now)
-- reply 1 or 0 per task
local unique, group, mode = tonumber(ARGV[2]), ARGV[4], ARGV[5]
-- The server's: when a task entered its stream was written by another process, whose clock may differ.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000) + tonumber(ARGV[1])
local tasks = (#ARGV - 6) / 3
local keys = {}
for i = 1, tasks do
  keys[i] = ARGV[4 + 3 * i]
end
local waiting = redis.call('HMGET', KEYS[4], unpack(keys))
local waits_until = redis.call('ZMSCORE', KEYS[2], unpack(keys))
local seq, seen = nil, {}
local entered, due_at, envelopes, old, replies = {}, {}, {}, {}, {}

local function on_its_way(i)
  if seen[keys[i]] then return true end
  if not is_on_its_way(KEYS[1], group, waits_until[i], waiting[i], now, unique) then return false end
  if mode ~= 'replace' then return true end
  local stream, id = place_of(KEYS[1], string.match(waiting[i] or '', '^%d+ %d+ (%S+)') or '-')
  if id ~= '-' and #redis.call('XRANGE', stream, id, id) > 0 then
    local pending = redis.pcall('XPENDING', stream, group, id, id, 1)
    if pending.err or #pending == 0 then
      redis.call('XDEL', stream, id)
      redis.call('HINCRBY', KEYS[4], 'done', 1)
      redis.call('HDEL', KEYS[4], keys[i])
      waiting[i] = false
    end
  end
  redis.call('ZREM', KEYS[2], keys[i])
  redis.call('HDEL', KEYS[3], keys[i])
  return false
end

for i = 1, tasks do
  local key, envelope, due = keys[i], ARGV[5 + 3 * i], tonumber(ARGV[6 + 3 * i])
  local taken = mode ~= 'once' or redis.call('SET', KEYS[4 + tasks + i], 1, 'NX', 'PX', ARGV[6])
  if taken and due > 0 then
    if mode == 'replace' then on_its_way(i) end
    due_at[#due_at + 1] = due
    due_at[#due_at + 1] = key
    envelopes[#envelopes + 1] = key
    envelopes[#envelopes + 1] = envelope
    seen[key] = true
  elseif taken and not on_its_way(i) then
    seq = (seq or tonumber(redis.call('HGET', KEYS[4], 'seq') or 0)) + 1
    seen[key] = true
    overtake(KEYS[4], KEYS[1], waiting[i])
    local entry = enter(KEYS[1], envelope)
    entered[#entered + 1] = key
    entered[#entered + 1] = string.format('%d %d %s', seq, now, entry)
  else
    taken = false
  end
  if taken then old[#old + 1] = KEYS[4 + i] end
  replies[i] = taken and 1 or 0
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
return replies
