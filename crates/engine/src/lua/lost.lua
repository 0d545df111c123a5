-- Clears tasks that are believed to be on their way and are nowhere: neither in their stream, nor with a worker, nor
-- among those that wait for their time. Nobody would ever run them, and their keys would be taken for ever.
--
-- Whatever puts a task into one of these places, or takes it out, writes meta in the same script. So one that is in none
-- of them was taken out by somebody else: `DEL` of a stream, `ZREM`, a key that was written over.
--
-- After streams.lua.
--
-- KEYS  1 stream, 2 meta, 3 delayed, 4 envelopes, 5 revoked, then per task its record and its once-key, last one that is
--       never there
-- ARGV  1 group, 2 one that entered its stream less than this ago is left (ms), 3 a worker without a sign for so long is gone
--       (ms), 4 done channel, 5 1 when all tasks were looked at since the counters differed, `look` to change nothing,
--       then the tasks' keys
-- reply {tasks cleared (or, of a look, lost), tasks that the counters have in the streams and the streams have not,
--       envelopes that nothing waits for (less those that something waits for without one)}
local call = redis.call
local stream, meta, delayed, envelopes, revoked = unpack(KEYS, 1, 5)
local group, grace, gone_after = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local only_looks = ARGV[5] == 'look'
local keys = { unpack(ARGV, 6) }
local cleared, left, now = {}, 0, nil

if #keys > 0 then
  local time = call('TIME')
  now = time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Whether nobody will run this entry.
local function is_lost(entry)
  if entry == '-' then return true end
  local at, id = place_of(stream, entry)
  local entered = tonumber(string.match(id, '^(%d+)%-%d+$'))
  -- By the server's clock, like the id.
  if not entered or now - entered < grace or #call('XRANGE', at, id, id) > 0 then return false end
  local pending = redis.pcall('XPENDING', at, group, id, id, 1)
  if pending.err or #pending == 0 then return true end
  if pending[1][3] < gone_after then return false end
  -- It cannot be taken over: what was to be run is gone. (From version 7 on the taking over itself ends it.)
  if not only_looks then call('XACK', at, group, id) end
  return true
end

-- Forgets what is said of a task that has not ended. One that ended before, under the same key, keeps its record.
local function forget(i)
  local record, once = KEYS[4 + 2 * i], KEYS[5 + 2 * i]
  local text = redis.pcall('GET', record)
  if type(text) == 'string' then
    local ok, known = pcall(cjson.decode, text)
    local state = ok and type(known) == 'table' and known.state
    if state ~= 'SUCCESS' and state ~= 'FAILURE' and state ~= 'REVOKED' then call('DEL', record) end
  end
  call('DEL', once)
  redis.pcall('HDEL', revoked, keys[i])
end

if #keys > 0 then
  local fields, due = call('HMGET', meta, unpack(keys)), call('ZMSCORE', delayed, unpack(keys))
  for i, key in ipairs(keys) do
    if not due[i] then
      local entry = string.match(fields[i] or '', '^%d+ %d+ (%S+)')
      local orphan = call(only_looks and 'HEXISTS' or 'HDEL', envelopes, key) == 1
      local lost = entry and is_lost(entry)
      if lost and not only_looks then
        call('HDEL', meta, key)
        if entry ~= '-' then left = left + 1 end
      end
      if lost or (orphan and not entry) then
        if not only_looks then forget(i) end
        cleared[#cleared + 1] = key
      end
    end
  end
end

local counts, held = call('HMGET', meta, 'seq', 'done'), call('XLEN', stream)
for _, level in ipairs(call('SMEMBERS', stream .. ':levels')) do
  held = held + call('XLEN', stream .. ':' .. level)
end
local missing = tonumber(counts[1] or 0) - tonumber(counts[2] or 0) - held
-- What is gone has left its stream. Whatever is still missing then has no field, such as an entry that nobody could read.
local settled = ARGV[5] == '1' and missing or math.min(left, missing)
if settled > 0 and not only_looks then
  call('HINCRBY', meta, 'done', settled)
  missing = missing - settled
end
if #cleared > 0 and not only_looks then call('PUBLISH', ARGV[4], table.concat(cleared, ' ')) end
return { #cleared, missing, call('HLEN', envelopes) - call('ZCARD', delayed) }
