-- Going through the indexes by pages, for the scripts that do.

-- Bytes, as Redis orders members; Lua's own < follows the server's locale.
local function is_before(a, b)
  for i = 1, math.min(#a, #b) do
    local x, y = string.byte(a, i), string.byte(b, i)
    if x ~= y then return x < y end
  end
  return #a < #b
end

-- Whether an entry comes after a cursor, newest first.
local function is_older(entry, cursor)
  if entry.at ~= cursor.at then return entry.at < cursor.at end
  return is_before(entry.id, cursor.id)
end

-- The entries of one index from below a cursor (nil: from the newest on), at most `limit`.
local function read_index(key, state, cursor, limit, found)
  local offset, taken = 0, 0
  local top = cursor and string.format('%.0f', cursor.at) or '+inf'
  repeat -- more than once only where many were submitted in the cursor's millisecond
    local page = redis.call('ZREVRANGEBYSCORE', key, top, '-inf', 'WITHSCORES', 'LIMIT', offset,
      limit)
    for i = 1, #page, 2 do
      local entry = { id = page[i], at = tonumber(page[i + 1]), state = state }
      if taken < limit and (not cursor or is_older(entry, cursor)) then
        found[#found + 1] = entry
        taken = taken + 1
      end
    end
    offset = offset + limit
  until taken >= limit or #page < 2 * limit
end

-- What jobs a caller means: ARGV from `first` on are names and values in turn. Optional: tag, tenant,
-- state, at and id of the cursor (the entry after which to go on).
local function read_query(first)
  local query = {}
  for i = first, #ARGV, 2 do query[ARGV[i]] = ARGV[i + 1] end
  if query.id then query.cursor = { at = tonumber(query.at), id = query.id } end
  return query
end

-- The shortest of the indexes that hold all that a query asks for; without one, those of all states.
-- They have one order, so a cursor holds for each of them.
local function sources(query)
  local found = {}
  if query.tag then found[1] = { key = tag_index(query.tag) } end
  if query.tenant and query.tenant ~= DEFAULT_TENANT then
    found[#found + 1] = { key = tenant_index(query.tenant) }
  end
  if query.state then
    found[#found + 1] = { key = state_index(query.state), state = query.state }
  end
  if #found == 0 then
    for i, state in ipairs(STATES) do found[i] = { key = state_index(state), state = state } end
    return found
  end
  for _, source in ipairs(found) do source.length = redis.call('ZCARD', source.key) end
  table.sort(found, function(a, b) return a.length < b.length end)
  return { found[1] }
end

-- One page of what may match a query, newest first: entries, and the last of them where the index
-- goes on. An entry whose record is gone, or does not match (`is_meant`), is the caller's to skip.
local function index_page(query, limit)
  local found = {}
  for _, source in ipairs(sources(query)) do
    read_index(source.key, source.state, query.cursor, limit + 1, found)
  end
  table.sort(found, function(a, b) return is_older(b, a) end)
  local last = #found > limit and found[limit] or nil
  for i = #found, limit + 1, -1 do found[i] = nil end
  return found, last
end

-- Whether the record of an entry (state, tags, tenant) is one that a query asks for.
local function is_meant(query, entry, job)
  if entry.state and entry.state ~= job.state then return false end -- of an earlier job of this id
  if query.state and query.state ~= job.state then return false end
  if query.tenant and query.tenant ~= (job.tenant or DEFAULT_TENANT) then return false end
  if not query.tag then return true end
  return string.find(',' .. (job.tags or '') .. ',', ',' .. query.tag .. ',', 1, true) ~= nil
end

-- A cursor as a reply: {at, id}, or nothing where the index ends.
local function cursor_reply(last)
  return last and { string.format('%.0f', last.at), last.id } or {}
end
