-- Ends deliveries: result, acknowledgement, retry or dead letter, and effects, all or nothing per task, and only for
-- a task whose delivery this consumer still owns.
--
-- KEYS  1 stream, 2 meta, 3 delayed, 4 envelopes, 5 dead, then the records, one per task, then the effects' keys
-- ARGV  1 group, 2 consumer, 3 now (ms), 4 record's life (ms), 5 done channel, 6 dead letters kept, 7 number of tasks,
--       then per task:
--         entry id, key, name, what ('end' | 'retry' | 'dead'), state, result, due (ms), args, attempt, number of effects,
--         then per effect: key's index in KEYS, command, number of arguments, arguments...
-- reply how many were still owned
local stream, meta, delayed, envelopes, dead = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local group, consumer, now, ttl = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local at, owned, ended = 8, 0, {}
for i = 1, tonumber(ARGV[7]) do
  local record = KEYS[5 + i]
  local entry, key, name, what, state = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4]
  local result, due, args, attempt = ARGV[at + 5], ARGV[at + 6], ARGV[at + 7], ARGV[at + 8]
  local effects = tonumber(ARGV[at + 9])
  at = at + 10
  local pending = redis.call('XPENDING', stream, group, entry, entry, 1)
  local mine = pending[1] and pending[1][2] == consumer
  if mine then
    owned = owned + 1
    redis.call('XACK', stream, group, entry)
    redis.call('XDEL', stream, entry)
    redis.call('HINCRBY', meta, 'done', 1)
    redis.call('HSET', record, 'state', state, 'name', name, 'ended_at', now, 'result', result)
    redis.call('PEXPIRE', record, ttl)
    if what == 'retry' then
      redis.call('HSET', envelopes, key, cjson.encode({ name = name, args = args, attempt = tonumber(attempt) }))
      redis.call('ZADD', delayed, due, key)
      redis.call('PEXPIRE', record, math.max(tonumber(ttl), tonumber(due) - tonumber(now) + tonumber(ttl)))
    else
      ended[#ended + 1] = key
      if what == 'dead' then
        redis.call('XADD', dead, 'MAXLEN', '~', ARGV[6], '*',
          'key', key, 'name', name, 'args', args, 'attempt', attempt, 'reason', cjson.decode(result).error, 'at', now)
      end
    end
  end
  for _ = 1, effects do
    local index, command, count = tonumber(ARGV[at]), ARGV[at + 1], tonumber(ARGV[at + 2])
    if mine then
      redis.call(command, KEYS[index], unpack(ARGV, at + 3, at + 2 + count))
    end
    at = at + 3 + count
  end
end
if #ended > 0 then
  redis.call('PUBLISH', ARGV[5], table.concat(ended, ' '))
end
return owned
