-- Ends deliveries: result, acknowledgement, retry or dead letter, and effects, all or nothing per task, and only for
-- a task whose delivery this consumer still owns.
--
-- KEYS  1 stream of the deliveries, 2 meta, 3 delayed, 4 envelopes, 5 dead, 6 revoked, 7 outbox, 8 ended, then the records, one per task, then
--       the effects' keys
-- ARGV  1 group, 2 consumer, 3 now (ms), 4 done channel, 5 dead letters kept, 6 life of meta (ms),
--       7 lowest and 8 highest of the entry ids, 9 name of the tasks, 10 entries of ended kept, 11 their life (ms),
--       12 number of tasks, then per task:
--         entry id, key, what (the state it ends with, 'retry' or 'dead'), record, record's life (ms), due (ms), envelope, reason, what
--         follows ('' or for the outbox), number of effects, then per effect: key's index in KEYS, command, number of arguments, arguments...
-- reply how many were still owned
local stream, meta, delayed, envelopes, dead = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local group, consumer, now, tasks = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[12])
-- What meta adds to the ids of this stream: its priority, when that is not the default one.
local level = string.match(stream, ':stream(:%d)$') or ''
local held = {}
for _, pending in ipairs(redis.call('XPENDING', stream, group, ARGV[7], ARGV[8], 2 * tasks, consumer)) do
  held[pending[1]] = true
end
local at, entries, ended, states, held_by, waits = 13, {}, {}, {}, {}, {}
for i = 1, tasks do
  local entry, key, what = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  local effects = tonumber(ARGV[at + 9])
  -- Other deliveries of this consumer may lie between and fill the answer: then this one is looked for by itself.
  local mine = held[entry] or #redis.call('XPENDING', stream, group, entry, entry, 1, consumer) == 1
  if mine then
    entries[#entries + 1] = entry
    redis.call('SET', KEYS[8 + i], ARGV[at + 3], 'PX', ARGV[at + 4])
    if what == 'retry' then
      local due = ARGV[at + 5]
      redis.call('HSET', envelopes, key, ARGV[at + 6])
      redis.call('ZADD', delayed, due, key)
      waits[#waits + 1] = key
      waits[#waits + 1] = '0 ' .. due .. ' -'
    else
      ended[#ended + 1] = key
      held_by[key] = entry .. level
      states[#states + 1] = key .. ' ' .. (what == 'dead' and 'FAILURE' or what)
      if ARGV[at + 8] ~= '' then redis.call('XADD', KEYS[7], '*', 'f', ARGV[at + 8]) end
      if what == 'dead' then
        redis.call('XADD', dead, 'MAXLEN', '~', ARGV[5], '*', 'e', ARGV[at + 6], 'reason', ARGV[at + 7], 'at', now)
      end
    end
  end
  at = at + 10
  for _ = 1, effects do
    local index, command, count = tonumber(ARGV[at]), ARGV[at + 1], tonumber(ARGV[at + 2])
    if mine then
      redis.call(command, KEYS[index], unpack(ARGV, at + 3, at + 2 + count))
    end
    at = at + 3 + count
  end
end
if #entries > 0 then
  redis.call('XACK', stream, group, unpack(entries))
  redis.call('XDEL', stream, unpack(entries))
  redis.call('HINCRBY', meta, 'done', #entries)
  if #waits > 0 then redis.call('HSET', meta, unpack(waits)) end
  if redis.call('PTTL', meta) < tonumber(ARGV[6]) then redis.call('PEXPIRE', meta, ARGV[6]) end
end
if #ended > 0 then
  redis.call('XADD', KEYS[8], 'MAXLEN', '~', ARGV[10], '*', 'n', ARGV[9], 't', table.concat(states, ' '))
  redis.call('PEXPIRE', KEYS[8], ARGV[11])
  -- A task that came again under the same key meanwhile waits on: the field is its own by now.
  local fields, gone = redis.call('HMGET', meta, unpack(ended)), {}
  for i, key in ipairs(ended) do
    local entry = string.match(fields[i] or '', '^%d+ %d+ (%S+)')
    if entry == '-' or entry == held_by[key] then gone[#gone + 1] = key end
  end
  if #gone > 0 then redis.call('HDEL', meta, unpack(gone)) end
  redis.call('HDEL', KEYS[6], unpack(ended))
  redis.call('PUBLISH', ARGV[4], table.concat(ended, ' '))
end
return #entries
