-- Queries over the indexes, one page per call.
-- @include keys, record

-- Compare bytes, as Redis orders members; Lua's own < follows the server's locale.
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

-- Collect at most `limit` entries of one index that follow a cursor (nil: start at the newest).
local function collect_entries(key, state, cursor, limit, found)
  local offset, taken = 0, 0
  local top = cursor and string.format('%.0f', cursor.at) or '+inf'
  repeat -- more than once only if many jobs were submitted in the cursor's millisecond
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

-- Read a query from ARGV: from `first` on, names and values alternate. Optional: tag, tenant, state, and the cursor
-- as `at` and `id` (the entry to continue after).
local function parse_query(first)
  local query = {}
  for i = first, #ARGV, 2 do query[ARGV[i]] = ARGV[i + 1] end
  if query.id then query.cursor = { at = tonumber(query.at), id = query.id } end
  return query
end

-- The indexes to read: the shortest one that holds every match, or those of all states if the query names nothing.
-- All indexes have one order, so a cursor is valid in each of them.
local function choose_indexes(query)
  local found = {}
  if query.tag then found[1] = { key = tag_index_key(query.tag) } end
  if query.tenant and query.tenant ~= DEFAULT_TENANT then
    found[#found + 1] = { key = tenant_index_key(query.tenant) }
  end
  if query.state then
    found[#found + 1] = { key = state_index_key(query.state), state = query.state }
  end
  if #found == 0 then
    for i, state in ipairs(STATES) do found[i] = { key = state_index_key(state), state = state } end
    return found
  end
  for _, source in ipairs(found) do source.length = redis.call('ZCARD', source.key) end
  table.sort(found, function(a, b) return a.length < b.length end)
  return { found[1] }
end

-- One page of candidates, newest first, and its last entry if more follow. The caller skips an entry whose record is
-- gone or does not match (`matches_query`).
local function read_page(query, limit)
  local found = {}
  for _, source in ipairs(choose_indexes(query)) do
    collect_entries(source.key, source.state, query.cursor, limit + 1, found)
  end
  table.sort(found, function(a, b) return is_older(b, a) end)
  local last = #found > limit and found[limit] or nil
  for i = #found, limit + 1, -1 do found[i] = nil end
  return found, last
end

-- Whether the record of an entry (its state, tags and tenant) matches a query.
local function matches_query(query, entry, job)
  if entry.state and entry.state ~= job.state then return false end -- an earlier job had this id
  if query.state and query.state ~= job.state then return false end
  if query.tenant and query.tenant ~= (job.tenant or DEFAULT_TENANT) then return false end
  if not query.tag then return true end
  return string.find(',' .. (job.tags or '') .. ',', ',' .. query.tag .. ',', 1, true) ~= nil
end

-- A cursor as a reply: {at, id}, or {} if nothing follows.
local function cursor_reply(last)
  return last and { string.format('%.0f', last.at), last.id } or {}
end
