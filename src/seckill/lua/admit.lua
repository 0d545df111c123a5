-- The admission: one unit reserved and the task enqueued, or nothing. Never touches MySQL.
--
-- KEYS  1 gate (hash: stock, starts, ends, closed, limit), 2 users (hash: user -> "<tries>:<task key, empty when free>"),
--       3 meta of the queue, 4 stream of the queue, 5 record of the new task
-- ARGV  1 now (ms), 2 user, 3 new task's key, 4 record's life (ms), 5 task's name, 6 task's arguments, 7 what records begin with
-- reply {what, value}: 0 no gate; 1 admitted; 2 in already (task key); 3 not started (start, ms); 4 ended; 5 sold out;
--       6 limit reached (limit)
local gate = redis.call('HMGET', KEYS[1], 'stock', 'starts', 'ends', 'closed', 'limit')
if not gate[1] or not gate[2] then return { 0, '' } end
local now = tonumber(ARGV[1])
if now < tonumber(gate[2]) then return { 3, gate[2] } end
local tries = 0
local known = redis.call('HGET', KEYS[2], ARGV[2])
if known then
  local colon = string.find(known, ':', 1, true)
  tries = tonumber(string.sub(known, 1, colon - 1))
  local held = string.sub(known, colon + 1)
  -- A submission whose task died without a result (dead letter) holds nobody back.
  if held ~= '' and redis.call('HGET', ARGV[7] .. held, 'state') ~= 'FAILURE' then return { 2, held } end
end
if gate[4] == '1' or now >= tonumber(gate[3]) then return { 4, '' } end
if tries >= tonumber(gate[5]) then return { 6, gate[5] } end
if tonumber(gate[1]) <= 0 then return { 5, '' } end
redis.call('HINCRBY', KEYS[1], 'stock', -1)
redis.call('HSET', KEYS[2], ARGV[2], (tries + 1) .. ':' .. ARGV[3])
local seq = redis.call('HINCRBY', KEYS[3], 'seq', 1)
redis.call('HSET', KEYS[5], 'state', 'PENDING', 'name', ARGV[5], 'owner', ARGV[2], 'at', now, 'seq', seq)
redis.call('PEXPIRE', KEYS[5], ARGV[4])
redis.call('XADD', KEYS[4], '*', 'v', 1, 'key', ARGV[3], 'name', ARGV[5], 'args', ARGV[6], 'attempt', 1)
return { 1, ARGV[3] }
