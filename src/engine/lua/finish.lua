-- Ends deliveries: result, acknowledgement, retry or dead letter, and effects, all or nothing per task, and only for
-- a task whose delivery this consumer still owns. Most end well and with nothing more to say: they cost least.
--
-- KEYS  1 stream of the deliveries, 2 meta, 3 delayed, 4 envelopes, 5 dead, 6 revoked, 7 outbox, 8 ended, then the
--       effects' keys, last one that is never there
-- ARGV  1 group, 2 consumer, 3 now (ms), 4 done channel, 5 dead letters kept, 6 life of meta (ms), 7 name of the tasks,
--       8 entries of ended kept, 9 their life (ms), 10 the records' life (ms), 11 what the records' keys begin with,
--       12 number of tasks n, then three columns of n: entry ids (ascending), keys, records,
--       then for each task of which there is more to say: its place in the columns, JSON with any of
--         ends (with a state, 'retry' or 'dead' instead of SUCCESS), life (of this record, ms), due (ms), envelope,
--         reason, follow (for the outbox), effects: list of {key (its index in KEYS), command, args}
-- reply how many were still owned
local stream, meta, delayed, envelopes, dead = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local group, consumer, now, life, prefix, n = ARGV[1], ARGV[2], ARGV[3], ARGV[10], ARGV[11], tonumber(ARGV[12])
local entries, keys, records = { unpack(ARGV, 13, 12 + n) }, { unpack(ARGV, 13 + n, 12 + 2 * n) }, 12 + 2 * n
local more, nothing = {}, {}
for at = 13 + 3 * n, #ARGV, 2 do
  more[tonumber(ARGV[at])] = cjson.decode(ARGV[at + 1])
end
-- What meta adds to the ids of this stream: its priority, when that is not the default one.
local level = string.match(stream, ':stream(:%d)$') or ''
local held = {}
for _, pending in ipairs(redis.call('XPENDING', stream, group, entries[1], entries[n], 2 * n, consumer)) do
  held[pending[1]] = true
end
local fields = redis.call('HMGET', meta, unpack(keys))
local find, byte = string.find, string.byte
local by_state, waits, gone = {}, {}, {}
-- By Redis' own clock; given as an instant a life is not rewritten for the append-only file, result by result.
local time = redis.call('TIME')

local function until_after(ms)
  return string.format('%d', time[1] * 1000 + math.floor(time[2] / 1000) + ms)
end

local kept_until = until_after(life)

-- Whether what meta says of a task has this word. A pattern would cost several times this.
local function has(field, word)
  local start, stop = find(field, word, 1, true)
  if not start or byte(field, start - 1) ~= 32 then return false end
  local after = byte(field, stop + 1)
  return not after or after == 32
end

-- How a task leaves; whether it has ended.
local function leave(key, ends, rest)
  if ends == 'retry' then
    redis.call('HSET', envelopes, key, rest.envelope)
    redis.call('ZADD', delayed, rest.due, key)
    waits[#waits + 1] = key
    waits[#waits + 1] = '0 ' .. rest.due .. ' -'
    return false
  end
  local state = ends == 'dead' and 'FAILURE' or ends
  local list = by_state[state] or {}
  by_state[state] = list
  list[#list + 1] = key
  if rest.follow then redis.call('XADD', KEYS[7], '*', 'f', rest.follow) end
  if ends == 'dead' then
    redis.call('XADD', dead, 'MAXLEN', '~', ARGV[5], '*', 'e', rest.envelope, 'reason', rest.reason, 'at', now)
  end
  return true
end

-- Takes those that were acknowledged out of the stream. What all of it before the last of them has ended is cut off at once,
-- by whole blocks; found one by one they cost several times that. Whatever was read has ended or is pending, so it is
-- enough that they begin the stream and nothing pending is before their last.
local function drop(owned)
  local last = entries[owned]
  local head = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
  local pending = redis.call('XPENDING', stream, group, '-', last, 1)[1]
  if head and head[1] == entries[1] and not pending then
    local ms, seq = string.match(last, '^(%d+)%-(%d+)$')
    redis.call('XTRIM', stream, 'MINID', '=', ms .. '-' .. string.format('%d', seq + 1))
  else
    redis.call('XDEL', stream, unpack(entries, 1, owned))
  end
end

local owned = 0
for i = 1, n do
  local entry, key, rest = entries[i], keys[i], more[i] or nothing
  -- Other deliveries of this consumer may lie between and fill the answer: then this one is looked for by itself.
  if held[entry] or #redis.call('XPENDING', stream, group, entry, entry, 1, consumer) == 1 then
    owned = owned + 1
    entries[owned] = entry
    redis.call('SET', prefix .. key, ARGV[records + i], 'PXAT', rest.life and until_after(rest.life) or kept_until)
    -- A task that came again under the same key meanwhile waits on: the field is its own by now.
    if leave(key, rest.ends or 'SUCCESS', rest) and fields[i] and (has(fields[i], entry .. level) or has(fields[i], '-')) then
      gone[#gone + 1] = key
    end
    for _, effect in ipairs(rest.effects or nothing) do
      redis.call(effect.command, KEYS[effect.key], unpack(effect.args))
    end
  end
end
if owned > 0 then
  redis.call('XACK', stream, group, unpack(entries, 1, owned))
  drop(owned)
  redis.call('HINCRBY', meta, 'done', owned)
  if #waits > 0 then redis.call('HSET', meta, unpack(waits)) end
  if #gone > 0 then redis.call('HDEL', meta, unpack(gone)) end
  if redis.call('PTTL', meta) < tonumber(ARGV[6]) then redis.call('PEXPIRE', meta, ARGV[6]) end
end
local revoked = redis.call('EXISTS', KEYS[6]) == 1
for state, ended in pairs(by_state) do
  local text = table.concat(ended, ' ')
  redis.call('XADD', KEYS[8], 'MAXLEN', '~', ARGV[8], '*', 'n', ARGV[7], 's', state, 't', text)
  redis.call('PEXPIRE', KEYS[8], ARGV[9])
  if revoked then redis.call('HDEL', KEYS[6], unpack(ended)) end
  redis.call('PUBLISH', ARGV[4], text)
end
return owned
