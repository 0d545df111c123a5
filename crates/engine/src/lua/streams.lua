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

-- Whether an entry came to its stream after another one.
local function is_after(id, other)
  local ms, seq = string.match(id, '^(%d+)%-(%d+)$')
  local other_ms, other_seq = string.match(other, '^(%d+)%-(%d+)$')
  if ms ~= other_ms then return tonumber(ms) > tonumber(other_ms) end
  return tonumber(seq) > tonumber(other_seq)
end

-- Whether an entry waits in its stream: nobody has read it.
local function waits(stream, group, entry)
  local at, id = place_of(stream, entry)
  if #redis.call('XRANGE', at, id, id) == 0 then return false end
  for _, info in ipairs(redis.call('XINFO', 'GROUPS', at)) do
    local of = {}
    for i = 1, #info, 2 do
      of[info[i]] = info[i + 1]
    end
    if of['name'] == group then return is_after(id, of['last-delivered-id']) end
  end
  return true
end

-- Whether a task has not ended and will: it waits for its time (`due`), it waits in its stream, or, by what meta says of
-- it, it entered that less than `sure` ms ago. After that one that was read may have been lost.
local function is_on_its_way(stream, group, due, meta, now, sure)
  if due then return true end
  local since, entry = string.match(meta or '', '^%d+ (%d+) (%S+)')
  if not since then return false end
  return now - tonumber(since) < sure or (entry ~= '-' and waits(stream, group, entry))
end


-- A task comes again while an older entry of it, the one that its field in meta names, may still be run: notes so before
-- the field is written anew. Whoever ends an entry of that stream up to the noted one then looks whose the field is by
-- now, and nobody else has to.
local function overtake(meta, stream, field)
  local entry = field and string.match(field, '^%d+ %d+ (%S+)')
  if not entry or entry == '-' then return end
  local at, id = place_of(stream, entry)
  local name = 'overtaken' .. string.sub(at, #stream + 1)
  local known = redis.call('HGET', meta, name)
  if not known or is_after(id, known) then redis.call('HSET', meta, name, id) end
end
