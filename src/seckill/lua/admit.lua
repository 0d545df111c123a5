-- The admission: one unit reserved and the task enqueued, or nothing. Never touches MySQL.
--
-- All that it reads is in one hash and all that it changes there is one write: every call and every key more is paid
-- for by each buyer who waits behind.
--
-- KEYS  1 meta of the queue, which is the gate too: stock, starts, ends, closed, limit, and by u<user> the user's place
--         "<tries>:<task key, empty when free>", 2 stream of the queue
-- ARGV  1 now (ms), 2 user, 3 new task's key, 4 its envelope, 5 what the keys of records begin with
-- reply {what, value}: 0 no gate; 1 admitted; 2 in already (task key); 3 not started (start, ms); 4 ended; 5 sold out;
--       6 limit reached (limit)
local user = 'u' .. ARGV[2]
local gate = redis.call('HMGET', KEYS[1], 'stock', 'starts', 'ends', 'closed', 'limit', 'seq', user)
local stock, starts, known = tonumber(gate[1]), tonumber(gate[2]), gate[7]
if not stock or not starts then return { 0, '' } end
local now = tonumber(ARGV[1])
if now < starts then return { 3, gate[2] } end
local tries = 0
if known then
  local colon = string.find(known, ':', 1, true)
  tries = tonumber(string.sub(known, 1, colon - 1))
  local held = string.sub(known, colon + 1)
  if held ~= '' then
    -- A submission whose task died without a result (dead letter) holds nobody back.
    local record = redis.call('GET', ARGV[5] .. held)
    if not record or cjson.decode(record).state ~= 'FAILURE' then return { 2, held } end
  end
end
if gate[4] == '1' or now >= tonumber(gate[3]) then return { 4, '' } end
if tries >= tonumber(gate[5]) then return { 6, gate[5] } end
if stock <= 0 then return { 5, '' } end
local seq = tonumber(gate[6] or 0) + 1
redis.call('HSET', KEYS[1], 'stock', stock - 1, 'seq', seq, user, (tries + 1) .. ':' .. ARGV[3],
  ARGV[3], seq .. ' ' .. ARGV[1] .. ' ' .. ARGV[2])
redis.call('XADD', KEYS[2], '*', 'e', ARGV[4])
return { 1, ARGV[3] }
