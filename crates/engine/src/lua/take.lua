-- Reads from the first of a queue's streams that has something new.
--
-- KEYS  streams, in the order in which they are tried
-- ARGV  1 group, 2 consumer, 3 at most so many entries
-- reply {number of the stream from 1, its entries, {}}; when none has anything new {0, {}, the last id of each stream}: what
--       comes to one of them after that is above
for i, stream in ipairs(KEYS) do
  local read = redis.call('XREADGROUP', 'GROUP', ARGV[1], ARGV[2], 'COUNT', ARGV[3], 'STREAMS', stream, '>')
  if read then return { i, read[1][2], {} } end
end
local last = {}
for i, stream in ipairs(KEYS) do
  local info = redis.call('XINFO', 'STREAM', stream)
  for at = 1, #info, 2 do
    if info[at] == 'last-generated-id' then last[i] = info[at + 1] end
  end
end
return { 0, {}, last }
