-- Counts one login before it is judged, or says that it must wait. A login is counted as a failed one until it is judged
-- (judged.lua): a thousand guesses at once are a thousand attempts.
--
-- Of the first two keys some attempts in a row are free. Each further one is judged only a pause after the one before,
-- and the pauses double up to a longest one: nobody is refused for ever, and nobody guesses often. A pause that is short
-- is waited for by the one who asks: the time of its judgement is booked here, so who comes next has to wait longer. One
-- that is long is refused, and changes nothing: whoever keeps asking does not make it longer for the owner.
--
-- But whoever keeps asking takes each turn of the number as soon as it can be had, before the owner, who comes when they
-- were told to. So the first attempts that a site makes in the number's day are let past the number's pause, up to a bound
-- for all sites together: they are counted, and take nobody's turn.
--
-- KEYS  1 who tries this number: an address, or a known device: {from, n, at}
--       2 the number, of all unknown places or of all known devices: {from, n, at}, and of those that were let past its
--         pause: {passes, site:<each site>}
--       3 the address, when the device is not known: {from, failed, pending}
-- ARGV  1 now (ms)  2 longest wait (ms)
--       3 life of 1 and 3 (ms)  4 free attempts of 1  5 longest pause of 1 (ms)
--       6 life of 2 (ms)        7 free attempts of 2  8 longest pause of 2 (ms)
--       9 failed attempts that 3 may have
--       10 attempts that 2 lets past its pause, of all sites  11 of one  12 the site
-- reply {0, ms to wait before it is judged} it is counted
--       {3, ms to wait} the same, and it was let past the number's pause
--       {1, ms until it makes sense to try again} too many failed
--       {2, 0} too many of this address are being judged now
local now, patience = tonumber(ARGV[1]), tonumber(ARGV[2])
local FIRST_PAUSE = 1000

-- A count that is older than its life begins anew. The key expires too, by the server's clock, so that none stays.
local function begun(from, life)
  return from and now < tonumber(from) + life
end

local life = tonumber(ARGV[3])
local address
if KEYS[3] then
  local limit = tonumber(ARGV[9])
  local kept = redis.call('HMGET', KEYS[3], 'from', 'failed', 'pending')
  if begun(kept[1], life) then
    local failed, pending = tonumber(kept[2] or 0), tonumber(kept[3] or 0)
    if failed >= limit then
      return {1, tonumber(kept[1]) + life - now}
    end
    if failed + pending >= limit then
      return {2, 0}
    end
    address = true
  end
end

-- When the next attempt of a key may be judged, and how many there were.
local function slot(key, life, free, longest)
  local kept = redis.call('HMGET', key, 'from', 'n', 'at')
  if not begun(kept[1], life) then
    return now, nil
  end
  local n, at = tonumber(kept[2]), tonumber(kept[3])
  if n < free then
    return now, n
  end
  -- Beyond 2^30 every pause is the longest one.
  local pause = math.min(FIRST_PAUSE * 2 ^ math.min(n - free, 30), longest)
  return math.max(now, at + pause), n
end

local mine, mine_n = slot(KEYS[1], life, tonumber(ARGV[4]), tonumber(ARGV[5]))
local every, every_n = slot(KEYS[2], tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8]))
local at = math.max(mine, every)

-- Its own pause holds for whoever is let past the number's. A device that is known has nothing to fear from strangers.
local site = 'site:' .. ARGV[12]
local passes = false
if KEYS[3] and at - now > patience and mine - now <= patience then
  local used = redis.call('HMGET', KEYS[2], 'passes', site)
  passes = tonumber(used[1] or 0) < tonumber(ARGV[10]) and tonumber(used[2] or 0) < tonumber(ARGV[11])
end
if passes then
  at = mine
elseif at - now > patience then
  return {1, at - now}
end

local function count(key, n, life)
  if n then
    redis.call('HSET', key, 'n', n + 1, 'at', at)
  else
    redis.call('DEL', key)
    redis.call('HSET', key, 'from', now, 'n', 1, 'at', at)
    redis.call('PEXPIRE', key, life)
  end
end
count(KEYS[1], mine_n, ARGV[3])
if passes then
  -- When the next one of all others is due stays as it was.
  redis.call('HINCRBY', KEYS[2], 'n', 1)
  redis.call('HINCRBY', KEYS[2], 'passes', 1)
  redis.call('HINCRBY', KEYS[2], site, 1)
else
  count(KEYS[2], every_n, ARGV[6])
end
if KEYS[3] then
  if not address then
    redis.call('DEL', KEYS[3])
    redis.call('HSET', KEYS[3], 'from', now, 'failed', 0, 'pending', 0)
    redis.call('PEXPIRE', KEYS[3], ARGV[3])
  end
  redis.call('HINCRBY', KEYS[3], 'pending', 1)
end
return {passes and 3 or 0, at - now}
