-- The admission of submissions that came at the same time, in their order: for each, one unit reserved and its task
-- enqueued, or nothing. Never touches MySQL.
--
-- All that it reads is in one hash, and all that it changes there is one write: every call and every key more is paid
-- for by each buyer who waits behind.
--
-- KEYS  1 meta of the queue, which is the gate too: stock, starts, ends, closed, limit, and by u<user> the user's place
--         "<tries>:<what it holds>": a task's key; nothing, when it is free; `owned`, when the user has the course;
--         `refunded`, when the order of the user's unit was refunded, 2 stream of the queue, 3 one that is never there
-- ARGV  1 what is added to the server's clock (ms; 0, but in tests), 2 what the keys of records begin with, then per submission: user, new task's key, its envelope
-- reply a word per submission, joined by blanks: no_gate; admitted; in:<task key>; lost:<task key> (in, but the task is
--       not on its way and has no record any more: MySQL knows what became of it); not_started:<start, ms>; ended;
--       owned; refunded; sold_out; limit:<limit>
-- By the server's clock, the only one that all who submit share: no machine opens a sale early because its own is wrong.
local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000) + tonumber(ARGV[1])
local places = {}
for i = 3, #ARGV, 3 do
  places[#places + 1] = 'u' .. ARGV[i]
end
local gate = redis.call('HMGET', KEYS[1], 'stock', 'starts', 'ends', 'closed', 'limit', 'seq', unpack(places))
local stock, starts, ends, limit = tonumber(gate[1]), tonumber(gate[2]), tonumber(gate[3]), tonumber(gate[5])
local seq = tonumber(gate[6] or 0)
local changed, own = {}, {}

-- What became of the task that a place names. One that died without a result (dead letter), or was taken back, holds
-- nobody back.
local function fate(key)
  local record = redis.call('GET', ARGV[2] .. key)
  if not record then return redis.call('HEXISTS', KEYS[1], key) == 1 and 'in' or 'lost' end
  local state = cjson.decode(record).state
  return (state == 'FAILURE' or state == 'REVOKED') and 'died' or 'in'
end

local function admit(place, known, key, envelope, user)
  if not stock or not starts then return 'no_gate' end
  local closed = gate[4] == '1' or now >= ends
  if now < starts then return closed and 'ended' or 'not_started:' .. gate[2] end
  local tries = 0
  if known then
    local colon = string.find(known, ':', 1, true)
    tries = tonumber(string.sub(known, 1, colon - 1))
    local held = string.sub(known, colon + 1)
    if held == 'owned' or held == 'refunded' then return closed and 'ended' or held end
    if held ~= '' then
      -- What this call took is not written yet, and nobody has heard of it.
      local became = own[place] and 'in' or fate(held)
      if became ~= 'died' then return became .. ':' .. held end
      -- It was given nothing, so it was no try.
      tries = tries - 1
    end
  end
  if closed then return 'ended' end
  if tries >= limit then return 'limit:' .. gate[5] end
  if stock <= 0 then return 'sold_out' end
  stock = stock - 1
  seq = seq + 1
  -- `%d`: a number joined to a string as it is goes through floating point formatting.
  own[place] = string.format('%d:%s', tries + 1, key)
  local entry = redis.call('XADD', KEYS[2], '*', 'e', envelope)
  local n = #changed
  changed[n + 1], changed[n + 2] = place, own[place]
  changed[n + 3], changed[n + 4] = key, string.format('%d %d %s %s', seq, now, entry, user)
  return 'admitted'
end

local replies = {}
for i, place in ipairs(places) do
  local at = 3 * i
  replies[i] = admit(place, own[place] or gate[6 + i], ARGV[at + 1], ARGV[at + 2], ARGV[at])
end
if #changed > 0 then
  redis.call('HSET', KEYS[1], 'stock', stock, 'seq', seq, unpack(changed))
end
return table.concat(replies, ' ')
