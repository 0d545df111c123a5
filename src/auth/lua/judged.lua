-- Says how a counted login was judged. What has expired since stays gone.
--
-- KEYS  as in attempt.lua
-- ARGV  1 'right', 'wrong' or 'unjudged'
local function less(key, field)
  if tonumber(redis.call('HGET', key, field) or '0') > 0 then
    redis.call('HINCRBY', key, field, -1)
  end
end

if ARGV[1] == 'right' then
  -- Its owner is there: what they mistyped from here is forgiven. Guesses from elsewhere are not.
  redis.call('DEL', KEYS[1])
  less(KEYS[2], 'n')
elseif ARGV[1] == 'unjudged' then
  less(KEYS[1], 'n')
  less(KEYS[2], 'n')
end
if KEYS[3] and redis.call('EXISTS', KEYS[3]) == 1 then
  less(KEYS[3], 'pending')
  if ARGV[1] == 'wrong' then
    redis.call('HINCRBY', KEYS[3], 'failed', 1)
  end
end
return 0
