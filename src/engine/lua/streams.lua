-- Stands before the scripts that use it. Tasks of the default priority (5) wait in the queue's stream, those of another
-- priority n in `<stream>:<n>`; the set `<stream>:levels` says which of these were ever used, and so are read. The queue's
-- meta names an entry `<id>` in the first and `<id>:<n>` in the others.
--
-- The names are made of the stream's, in the same slot, so that tasks of the default priority cost no key more.

-- Adds an envelope to the stream where it belongs; gives the entry's name.
local function enter(stream, text)
  -- Most envelopes say nothing of a priority, and are not decoded.
  if string.find(text, '"priority":', 1, true) then
    local ok, envelope = pcall(cjson.decode, text)
    local level = ok and type(envelope) == 'table' and tonumber(envelope.priority)
    if level and level ~= 5 and level >= 0 and level <= 9 and level % 1 == 0 then
      level = string.format('%d', level)
      redis.call('SADD', stream .. ':levels', level)
      return redis.call('XADD', stream .. ':' .. level, '*', 'e', text) .. ':' .. level
    end
  end
  return redis.call('XADD', stream, '*', 'e', text)
end

-- The stream that an entry is in, and its id there.
local function place_of(stream, entry)
  local id, level = string.match(entry, '^([^:]*):(%d)$')
  if not id then return stream, entry end
  return stream .. ':' .. level, id
end

