-- Counts one attempt. The count and its expiry are set together, so that no counter stays for ever.
--
-- KEYS  1 the counter
-- ARGV  1 the window (ms), from the first attempt on
-- reply {attempts in the window with this one, ms until the window ends}
local attempts = redis.call('INCR', KEYS[1])
local left = redis.call('PTTL', KEYS[1])
if left < 0 then
  redis.call('PEXPIRE', KEYS[1], ARGV[1])
  left = tonumber(ARGV[1])
end
return {attempts, left}
