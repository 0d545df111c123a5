-- Enqueues dead letters anew and removes them. One that is gone was retried, or removed, by somebody else: nothing
-- happens. One whose task is on its way again already is removed only.
--
-- After streams.lua.
--
-- KEYS  1 stream, 2 meta, 3 dead, 4 delayed, then a record per letter, last one that is never there
-- ARGV  1 how far the process's clock is from the machines' (ms; 0 but in tests), 2 life of meta (ms), 3 a task of the same
--       key may have been lost after (ms), 4 group, then per letter: its entry, the task's key ('' when its envelope cannot be
--       read), envelope, owner
-- reply how many were enqueued
local time, enqueued = redis.call('TIME'), 0
local now = time[1] * 1000 + math.floor(time[2] / 1000) + tonumber(ARGV[1])
for i = 1, (#ARGV - 4) / 4 do
  local entry, key, envelope, owner = ARGV[4 * i + 1], ARGV[4 * i + 2], ARGV[4 * i + 3], ARGV[4 * i + 4]
  if redis.call('XDEL', KEYS[3], entry) == 1 then
    local waiting, due
    if key ~= '' then
      waiting, due = redis.call('HGET', KEYS[2], key), redis.call('ZSCORE', KEYS[4], key)
    end
    if not is_on_its_way(KEYS[1], ARGV[4], due, waiting, now, tonumber(ARGV[3])) then
      local seq = redis.call('HINCRBY', KEYS[2], 'seq', 1)
      local added = enter(KEYS[1], envelope)
      if key ~= '' then
        local place = string.format('%d %d %s', seq, now, added)
        if owner ~= '' then place = place .. ' ' .. owner end
        overtake(KEYS[2], KEYS[1], waiting)
        redis.call('HSET', KEYS[2], key, place)
        redis.call('DEL', KEYS[4 + i])
      end
      enqueued = enqueued + 1
    end
  end
end
if enqueued > 0 and redis.call('PTTL', KEYS[2]) < tonumber(ARGV[2]) then redis.call('PEXPIRE', KEYS[2], ARGV[2]) end
return enqueued
