-- Takes tasks out that wait, for good. One that a worker has by now stays.
--
-- After streams.lua.
--
-- KEYS  1 stream, 2 delayed, 3 envelopes, 4 meta, 5 ended, 6 outbox, then a record per task, last one that is never
--       there
-- ARGV  1 group, 2 records' life (ms), 3 done channel, 4 entries of ended kept, 5 their life (ms), then per task: name of
--       its entry (- for one that waits for its time), key ('' when its envelope cannot be read), name, record, what
--       follows ('' or for the outbox)
-- reply how many were taken out
local taken, ended, left = 0, {}, 0
for i = 1, (#ARGV - 5) / 5 do
  local at = 1 + 5 * i
  local entry, key, name, record, follow = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4]
  local gone
  if entry == '-' then
    gone = redis.call('ZREM', KEYS[2], key) == 1
    if gone then redis.call('HDEL', KEYS[3], key) end
  else
    local stream, id = place_of(KEYS[1], entry)
    local pending = redis.pcall('XPENDING', stream, ARGV[1], id, id, 1)
    gone = (pending.err or #pending == 0) and redis.call('XDEL', stream, id) == 1
    if gone then left = left + 1 end
  end
  if gone then
    taken = taken + 1
    if key ~= '' then
      -- A task that came again under the same key meanwhile waits on: the field is its own by now.
      local held = string.match(redis.call('HGET', KEYS[4], key) or '', '^%d+ %d+ (%S+)')
      if held == '-' or held == entry then redis.call('HDEL', KEYS[4], key) end
      redis.call('SET', KEYS[6 + i], record, 'PX', ARGV[2])
      if follow ~= '' then redis.call('XADD', KEYS[6], '*', 'f', follow) end
      ended[#ended + 1] = key
      redis.call('XADD', KEYS[5], 'MAXLEN', '~', ARGV[4], '*', 'n', name, 's', 'REVOKED', 't', key)
    end
  end
end
if left > 0 then redis.call('HINCRBY', KEYS[4], 'done', left) end
if #ended > 0 then
  redis.call('PEXPIRE', KEYS[5], ARGV[5])
  redis.call('PUBLISH', ARGV[3], table.concat(ended, ' '))
end
return taken
