-- Says how a counted login was judged. What has expired since stays gone.
--
-- KEYS  as in attempt.lua
-- ARGV  1 'right', 'wrong' or 'unjudged'  2 the site  3 '1' if it was let past the number's pause
local function less(key, field)
  if tonumber(redis.call('HGET', key, field) or '0') > 0 then
    redis.call('HINCRBY', key, field, -1)
  end
end

-- The site may be let past the number's pause again, as often as it was, or `most`.
local function give_back(most)
  local site = 'site:' .. ARGV[2]
  local used = math.min(tonumber(redis.call('HGET', KEYS[2], site) or '0'), most)
  if used > 0 then
    if redis.call('HINCRBY', KEYS[2], site, -used) == 0 then
      redis.call('HDEL', KEYS[2], site)
    end
    redis.call('HINCRBY', KEYS[2], 'passes', -used)
  end
end

if ARGV[1] == 'right' then
  -- Its owner is there: what they mistyped from here is forgiven. Guesses from elsewhere are not.
  redis.call('DEL', KEYS[1])
  less(KEYS[2], 'n')
  give_back(math.huge)
elseif ARGV[1] == 'unjudged' then
  less(KEYS[1], 'n')
  less(KEYS[2], 'n')
  if ARGV[3] == '1' then
    give_back(1)
  end
end
if KEYS[3] and redis.call('EXISTS', KEYS[3]) == 1 then
  less(KEYS[3], 'pending')
  if ARGV[1] == 'wrong' then
    redis.call('HINCRBY', KEYS[3], 'failed', 1)
  end
end
return 0
