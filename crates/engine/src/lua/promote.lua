-- Moves delayed tasks whose time has come to the stream, the earliest first, unless the queue is paused; tells also
-- which tasks are to be stopped, what operators have set, and which priorities the queue has streams for. By the server's
-- clock: a process whose own is ahead would run the tasks of all others early. After streams.lua.
--
-- KEYS  1 delayed, 2 envelopes, 3 stream, 4 meta, 5 revoked, 6 control, 7 one that is never there
-- ARGV  1 how far the process's clock is from the machines' (ms; 0 but in tests), 2 at most so many, 3 life of meta (ms)
-- reply {due, milliseconds until the next one is due (-1: none waits, or paused), keys of running tasks that were
--       revoked, paused (0 | 1), concurrency (0: not set), priorities beside the default one, keys of those that were due and
--       have no envelope: they are lost, and waited for no more}
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000) + tonumber(ARGV[1])
local set = redis.call('HMGET', KEYS[6], 'paused', 'concurrency')
local due, hollow = {}, {}
if not set[1] then
  due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', string.format('%d', now), 'LIMIT', 0, ARGV[2])
end
if #due > 0 then
  local texts = redis.call('HMGET', KEYS[2], unpack(due))
  local fields = redis.call('HMGET', KEYS[4], unpack(due))
  local seq = tonumber(redis.call('HGET', KEYS[4], 'seq') or 0)
  local stream, since, entered, last = KEYS[3], string.format(' %d ', now), {}, 0
  for i, key in ipairs(due) do
    if texts[i] then
      seq = seq + 1
      if fields[i] then overtake(KEYS[4], stream, fields[i]) end
      entered[last + 1] = key
      last = last + 2
      entered[last] = string.format('%d', seq) .. since .. enter(stream, texts[i])
    else
      hollow[#hollow + 1] = key
    end
  end
  redis.call('ZREM', KEYS[1], unpack(due))
  redis.call('HDEL', KEYS[2], unpack(due))
  if last > 0 then
    redis.call('HSET', KEYS[4], 'seq', seq, unpack(entered))
    if redis.call('PTTL', KEYS[4]) < tonumber(ARGV[3]) then redis.call('PEXPIRE', KEYS[4], ARGV[3]) end
  end
end
local revoked = redis.call('HKEYS', KEYS[5])
local next = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
local pause = -1
if next[2] and not set[1] then
  pause = math.max(0, math.ceil(tonumber(next[2]) - now))
end
local levels = redis.call('SMEMBERS', KEYS[3] .. ':levels')
return { #due, pause, revoked, set[1] and 1 or 0, tonumber(set[2] or 0), levels, hollow }
