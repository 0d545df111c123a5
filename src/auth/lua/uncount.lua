-- Takes one attempt back. The expiry stays; a counter that has expired stays gone.
--
-- KEYS  1 the counter
if tonumber(redis.call('GET', KEYS[1]) or '0') > 0 then
  redis.call('DECR', KEYS[1])
end
return 0
