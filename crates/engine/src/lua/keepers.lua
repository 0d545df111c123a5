-- Takes, or keeps, the right to keep idle queues going: each queue's is one worker's, for a while.
--
-- KEYS  1 rights
-- ARGV  1 the worker, 2 how long a right holds (ms; 0: those that it has are given back), then the queues, 500 at most
-- reply per queue 1 when the right is the worker's, else 0
--
-- A right that ends later than any can was written by a server whose clock was ahead: it holds no more.
local call = redis.call
local rights, worker, life = KEYS[1], ARGV[1], tonumber(ARGV[2])
local queues, replies, taken, given = { unpack(ARGV, 3) }, {}, {}, {}
local time = call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function holds(right)
  local till, by = string.match(right or '', '^(%d+) (.*)$')
  till = tonumber(till)
  return till and till > now and till <= now + 10000 and by
end
local known = call('HMGET', rights, unpack(queues))
for i, queue in ipairs(queues) do
  local by = holds(known[i])
  replies[i] = (not by or by == worker) and 1 or 0
  if replies[i] == 1 and life > 0 then
    taken[#taken + 1] = queue
    taken[#taken + 1] = string.format('%d %s', now + life, worker)
  elseif by == worker then
    given[#given + 1] = queue
  end
end
if #given > 0 then call('HDEL', rights, unpack(given)) end
if #taken > 0 then
  call('HSET', rights, unpack(taken))
  call('PEXPIRE', rights, 20 * life)
  -- A queue that nobody consumes any more has nobody who would take its right away.
  local some = call('HRANDFIELD', rights, 2, 'WITHVALUES')
  for i = 1, #some, 2 do
    if not holds(some[i + 1]) then call('HDEL', rights, some[i]) end
  end
end
return replies
