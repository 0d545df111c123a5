-- Frees the place of a submission that came to nothing and is known nowhere any more. It was no try. Its unit comes
-- back by reconciliation.
--
-- KEYS  1 meta
-- ARGV  1 user, 2 task key
-- reply 1, or 0 when the place names another task by now
local user = 'u' .. ARGV[1]
local known = redis.call('HGET', KEYS[1], user)
if not known then return 0 end
local colon = string.find(known, ':', 1, true)
if string.sub(known, colon + 1) ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], user, string.format('%d:', tonumber(string.sub(known, 1, colon - 1)) - 1))
return 1
