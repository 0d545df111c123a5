-- Which streams are not as they were when their readers came to rest.
--
-- KEYS  streams, 500 at most
-- ARGV  per stream its last id then
-- reply the numbers, from 1, of those whose last id is another one, or that are gone or no streams
local changed = {}
for i, stream in ipairs(KEYS) do
  local info, last = redis.pcall('XINFO', 'STREAM', stream), nil
  for at = 1, #info, 2 do
    if info[at] == 'last-generated-id' then last = info[at + 1] end
  end
  if last ~= ARGV[i] then changed[#changed + 1] = i end
end
return changed
