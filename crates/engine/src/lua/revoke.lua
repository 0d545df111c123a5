-- Takes a task back before it runs; one that runs is noted, for its worker to tell it.
--
-- After streams.lua.
--
-- KEYS  1 stream, 2 delayed, 3 envelopes, 4 meta, 5 record, 6 revoked, 7 ended, 8 outbox, 9 one that is never there
-- ARGV  1 group, 2 key, 3 record, 4 record's life (ms), 5 now (ms), 6 life of the note (ms), 7 done channel,
--       8 name, 9 entries of ended kept, 10 what follows ('' or for the outbox)
-- reply 'revoked', 'running', 'ended' or 'unknown'
local key = ARGV[2]
local field = redis.call('HGET', KEYS[4], key)
local waited = redis.call('ZREM', KEYS[2], key) == 1
if waited then redis.call('HDEL', KEYS[3], key) end
if not waited and not field then
  return redis.call('EXISTS', KEYS[5]) == 1 and 'ended' or 'unknown'
end
-- Beside one that waits for its time there may be one that entered the stream.
local entry = string.match(field or '', '^%d+ %d+ (%S+)')
if entry and entry ~= '-' then
  local stream, id = place_of(KEYS[1], entry)
  local pending = redis.pcall('XPENDING', stream, ARGV[1], id, id, 1)
  if not pending.err and #pending > 0 then
    redis.call('HSET', KEYS[6], key, ARGV[5])
    redis.call('PEXPIRE', KEYS[6], ARGV[6])
    return 'running'
  end
  if redis.call('XDEL', stream, id) == 1 then redis.call('HINCRBY', KEYS[4], 'done', 1) end
end
redis.call('HDEL', KEYS[4], key)
redis.call('SET', KEYS[5], ARGV[3], 'PX', ARGV[4])
redis.call('XADD', KEYS[7], 'MAXLEN', '~', ARGV[9], '*', 'n', ARGV[8], 's', 'REVOKED', 't', key)
redis.call('PEXPIRE', KEYS[7], ARGV[4])
if ARGV[10] ~= '' then redis.call('XADD', KEYS[8], '*', 'f', ARGV[10]) end
redis.call('PUBLISH', ARGV[7], key)
return 'revoked'
