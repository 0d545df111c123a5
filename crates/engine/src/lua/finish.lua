-- Ends deliveries: result, acknowledgement, retry or dead letter, and effects, all or nothing per task, and only for
-- a task whose delivery this consumer still owns. Most end well and with nothing more to say: they cost least.
--
-- After streams.lua.
--
-- KEYS  1 stream of the deliveries, 2 meta, 3 delayed, 4 envelopes, 5 dead, 6 revoked, 7 outbox, 8 ended, then the
--       effects' keys, last one that is never there
-- ARGV  1 group, 2 consumer, 3 how far the process's clock is from the machines' (ms; 0 but in tests), 4 done channel,
--       5 dead letters kept, 6 life of meta (ms), 7 name of the tasks, 8 entries of ended kept, 9 their life (ms),
--       10 the records' life (ms), 11 what the records' keys begin with, 12 number of tasks n, then three columns of n:
--       entry ids (ascending), keys, records, then for each task of which there is more to say: its place in the
--       columns, JSON with any of
--         ends (with a state, 'retry' or 'dead' instead of SUCCESS), life (of this record, ms), pause (until it is due,
--         ms), envelope, reason, follow (for the outbox), effects: list of {key (its index in KEYS), command, args}
-- reply how many were still owned
local call, try = redis.call, redis.pcall
local stream, meta, delayed, envelopes, dead = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local group, consumer, life, prefix, n = ARGV[1], ARGV[2], ARGV[10], ARGV[11], tonumber(ARGV[12])
local entries, keys, records = { unpack(ARGV, 13, 12 + n) }, { unpack(ARGV, 13 + n, 12 + 2 * n) }, 12 + 2 * n
local more, nothing = {}, {}
for at = 13 + 3 * n, #ARGV, 2 do
  more[tonumber(ARGV[at])] = cjson.decode(ARGV[at + 1])
end
-- Places of deliveries that are not this consumer's any more.
local lost = {}

-- Whether another consumer has a delivery between the first and the last of these: then it may be one of these.
local function is_mixed()
  for _, other in ipairs(call('XPENDING', stream, group)[4] or nothing) do
    local theirs = other[1] ~= consumer
    if theirs and #call('XPENDING', stream, group, entries[1], entries[n], 1, other[1]) > 0 then return true end
  end
  return false
end

-- The deliveries that are this consumer's, by asking whose each one is.
local function ask()
  local held, ours = {}, {}
  for _, pending in ipairs(call('XPENDING', stream, group, entries[1], entries[n], 2 * n, consumer)) do
    held[pending[1]] = true
  end
  for i, entry in ipairs(entries) do
    -- Others of this consumer may lie between and fill the answer: then this one is looked for by itself.
    if held[entry] or #call('XPENDING', stream, group, entry, entry, 1, consumer) == 1 then
      ours[#ours + 1] = entry
    else
      lost[i] = true
    end
  end
  return ours
end

-- The same, where none of them is another's, by acknowledging them: that costs a fraction. Nothing may follow that can
-- fail, for what is acknowledged and still in the stream is never run again.
local function acknowledge()
  local acked = call('XACK', stream, group, unpack(entries))
  if acked == n then return entries end
  local ours = {}
  for i, entry in ipairs(entries) do
    -- Nobody's before: ended, and so gone from the stream, or not read, after a fail-over to a server that has not seen it.
    lost[i] = acked == 0 or #call('XRANGE', stream, entry, entry) == 0 or waits(stream, group, entry)
    if not lost[i] then ours[#ours + 1] = entry end
  end
  return ours
end

-- What meta adds to the ids of this stream: its priority, when that is not the default one.
local level = string.match(stream, ':stream(:%d)$') or ''
-- As a rule a task's field in meta names the entry that ends here. Up to this one it may be a later entry's by now.
local overtaken, fields = call('HGET', meta, 'overtaken' .. level), nil
if overtaken and not is_after(entries[1], overtaken) then fields = call('HMGET', meta, unpack(keys)) end
-- As a rule there is nothing more to say of any, and nobody else has one of them.
local at_once = next(more) == nil and not is_mixed()
local ours = at_once and acknowledge() or ask()
local owned = #ours
if owned == 0 then return 0 end
local by_state, put_off, gone = {}, {}, {}
-- By Redis' own clock; given as an instant a life is not rewritten for the append-only file, result by result.
local time = call('TIME')
local server_now = time[1] * 1000 + math.floor(time[2] / 1000)

local function until_after(ms)
  return string.format('%d', server_now + ms)
end

-- Whoever moves what is due asks the same clock.
local now = server_now + tonumber(ARGV[3])

local kept_until = until_after(life)

-- Whether meta's field of a task is a later entry's.
local function is_overtaken(i)
  local named = fields and string.match(fields[i] or '', '^%d+ %d+ (%S+)')
  return named and named ~= '-' and named ~= entries[i] .. level
end

-- A task that has ended. One that came again under the same key meanwhile waits on.
local function ended(i, state)
  local list = by_state[state] or {}
  by_state[state] = list
  list[#list + 1] = keys[i]
  if not is_overtaken(i) then gone[#gone + 1] = keys[i] end
end

-- What there is to do beside the record.
local function leave(i, rest)
  local key = keys[i]
  if rest.ends == 'retry' then
    local due = string.format('%d', now + rest.pause)
    call('HSET', envelopes, key, rest.envelope)
    call('ZADD', delayed, due, key)
    if is_overtaken(i) then overtake(meta, stream, fields[i]) end
    put_off[#put_off + 1] = key
    put_off[#put_off + 1] = '0 ' .. due .. ' -'
    return
  end
  if rest.follow then call('XADD', KEYS[7], '*', 'f', rest.follow) end
  if rest.ends == 'dead' then
    local at = string.format('%d', now)
    call('XADD', dead, 'MAXLEN', '~', ARGV[5], '*', 'e', rest.envelope, 'reason', rest.reason, 'at', at)
  end
  for _, effect in ipairs(rest.effects or nothing) do
    call(effect.command, KEYS[effect.key], unpack(effect.args))
  end
  ended(i, rest.ends == 'dead' and 'FAILURE' or rest.ends or 'SUCCESS')
end

-- Takes those that were acknowledged out of the stream. What all of it before the last of them has ended is cut off at once,
-- by whole blocks; found one by one they cost several times that. Whatever was read has ended or is pending, so it is
-- enough that they begin the stream and nothing pending is before their last.
local function drop()
  local head = call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
  local pending = call('XPENDING', stream, group, '-', entries[n], 1)[1]
  if owned == n and head and head[1] == entries[1] and not pending then
    local ms, seq = string.match(entries[n], '^(%d+)%-(%d+)$')
    call('XTRIM', stream, 'MINID', '=', ms .. '-' .. string.format('%d', seq + 1))
  else
    call('XDEL', stream, unpack(ours))
  end
end

local usual = at_once and owned == n and not fields
for i = 1, n do
  if not lost[i] then
    local rest = more[i]
    local until_ms = rest and rest.life and until_after(rest.life) or kept_until
    -- GET: as a rule nothing was there; without it the answer is a table, made anew for each task. It fails on what is no
    -- string, and so no record.
    local was = try('SET', prefix .. keys[i], ARGV[records + i], 'PXAT', until_ms, 'GET')
    if was and was.err then call('SET', prefix .. keys[i], ARGV[records + i], 'PXAT', until_ms) end
    if not usual then leave(i, rest or nothing) end
  end
end
if usual then
  by_state.SUCCESS, gone = keys, keys
end
if not at_once then call('XACK', stream, group, unpack(ours)) end
drop()
call('HINCRBY', meta, 'done', owned)
if #gone > 0 then call('HDEL', meta, unpack(gone)) end
if #put_off > 0 then call('HSET', meta, unpack(put_off)) end
if call('PTTL', meta) < tonumber(ARGV[6]) then call('PEXPIRE', meta, ARGV[6]) end
local revoked = call('EXISTS', KEYS[6]) == 1
for state, list in pairs(by_state) do
  local text = table.concat(list, ' ')
  call('XADD', KEYS[8], 'MAXLEN', '~', ARGV[8], '*', 'n', ARGV[7], 's', state, 't', text)
  call('PEXPIRE', KEYS[8], ARGV[9])
  if revoked then call('HDEL', KEYS[6], unpack(list)) end
  call('PUBLISH', ARGV[4], text)
end
return owned
