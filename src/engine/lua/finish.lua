-- Ends deliveries: result, acknowledgement, retry or dead letter, and effects, all or nothing per task, and only for
-- a task whose delivery this consumer still owns.
--
-- KEYS  1 stream of the deliveries, 2 meta, 3 delayed, 4 envelopes, 5 dead, 6 revoked, 7 outbox, 8 ended, then the records, one per task, then
--       the effects' keys
-- ARGV  1 group, 2 consumer, 3 now (ms), 4 done channel, 5 dead letters kept, 6 life of meta (ms),
--       7 lowest and 8 highest of the entry ids, 9 name of the tasks, 10 entries of ended kept, 11 their life (ms),
--       12 the records' life (ms), 13 number of tasks, then per task:
--         entry id, key, what (the state it ends with, 'retry' or 'dead'), record, rest: '' as a rule, or JSON with any of
--           life (of this record, ms), due (ms), envelope, reason, follow (for the outbox),
--           effects: list of {key (its index in KEYS), command, args}
-- reply how many were still owned
local stream, meta, delayed, envelopes, dead = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local group, consumer, now, tasks = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[13])
-- What meta adds to the ids of this stream: its priority, when that is not the default one.
local level = string.match(stream, ':stream(:%d)$') or ''
local held = {}
for _, pending in ipairs(redis.call('XPENDING', stream, group, ARGV[7], ARGV[8], 2 * tasks, consumer)) do
  held[pending[1]] = true
end
local entries, ended, states, held_by, waits = {}, {}, {}, {}, {}
local nothing = {}

local function leave(key, what, rest)
  if what == 'retry' then
    redis.call('HSET', envelopes, key, rest.envelope)
    redis.call('ZADD', delayed, rest.due, key)
    waits[#waits + 1] = key
    waits[#waits + 1] = '0 ' .. rest.due .. ' -'
    return
  end
  ended[#ended + 1] = key
  states[#states + 1] = key .. ' ' .. (what == 'dead' and 'FAILURE' or what)
  if rest.follow then redis.call('XADD', KEYS[7], '*', 'f', rest.follow) end
  if what == 'dead' then
    redis.call('XADD', dead, 'MAXLEN', '~', ARGV[5], '*', 'e', rest.envelope, 'reason', rest.reason, 'at', now)
  end
end

-- Whether what meta says of a task names this entry (with the blank before it). A pattern would cost several times this.
local function names(field, entry)
  local _, stop = string.find(field, entry, 1, true)
  if not stop then return false end
  local after = string.byte(field, stop + 1)
  return not after or after == 32
end

for i = 1, tasks do
  local at = 9 + 5 * i
  local entry, key = ARGV[at], ARGV[at + 1]
  -- Other deliveries of this consumer may lie between and fill the answer: then this one is looked for by itself.
  if held[entry] or #redis.call('XPENDING', stream, group, entry, entry, 1, consumer) == 1 then
    local rest = nothing
    if ARGV[at + 4] ~= '' then rest = cjson.decode(ARGV[at + 4]) end
    entries[#entries + 1] = entry
    held_by[key] = ' ' .. entry .. level
    redis.call('SET', KEYS[8 + i], ARGV[at + 3], 'PX', rest.life or ARGV[12])
    leave(key, ARGV[at + 2], rest)
    for _, effect in ipairs(rest.effects or nothing) do
      redis.call(effect.command, KEYS[effect.key], unpack(effect.args))
    end
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
    if names(fields[i] or '', held_by[key]) or names(fields[i] or '', ' -') then gone[#gone + 1] = key end
  end
  if #gone > 0 then redis.call('HDEL', meta, unpack(gone)) end
  if redis.call('EXISTS', KEYS[6]) == 1 then redis.call('HDEL', KEYS[6], unpack(ended)) end
  redis.call('PUBLISH', ARGV[4], table.concat(ended, ' '))
end
return #entries
