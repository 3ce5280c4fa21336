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

-- Collect at most `limit` entries of one index that follow the query's cursor (nil: start at the newest), between its
-- times of submission.
local function collect_entries(key, state, query, limit, found)
  local offset, taken = 0, 0
  local cursor = query.cursor
  local top, bottom = '+inf', query.since or '-inf'
  if query.until_ms then top = '(' .. query.until_ms end
  if cursor and not (query.until_ms and cursor.at >= tonumber(query.until_ms)) then
    top = string.format('%.0f', cursor.at)
  end
  repeat -- more than once only if many jobs were submitted in the cursor's millisecond
    local page = redis.call('ZREVRANGEBYSCORE', key, top, bottom, 'WITHSCORES', 'LIMIT', offset,
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

-- Read a query from ARGV: from `first` on, names and values alternate. Optional: tag, tenant, state, queue,
-- queue_prefix (a model's queues), since and until_ms (when the job was submitted, the second exclusive), unfinished
-- (1: only jobs that have not ended), and the cursor as `at` and `id` (the entry to continue after).
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
    for i, state in ipairs(query.unfinished and UNFINISHED_STATES or STATES) do
      found[i] = { key = state_index_key(state), state = state }
    end
    return found
  end
  for _, source in ipairs(found) do source.length = redis.call('ZCARD', source.key) end
  table.sort(found, function(a, b) return a.length < b.length end)
  return { found[1] }
end

-- One page of candidates, newest first, and its last entry if more follow. The caller skips an entry whose record is
-- gone or does not match (`matches_query`). `also` names a further index to read (nil: none).
local function read_page(query, limit, also)
  local found = {}
  for _, source in ipairs(choose_indexes(query)) do
    collect_entries(source.key, source.state, query, limit + 1, found)
  end
  if also then collect_entries(also, nil, query, limit + 1, found) end
  table.sort(found, function(a, b) return is_older(b, a) end)
  local last = #found > limit and found[limit] or nil
  for i = #found, limit + 1, -1 do found[i] = nil end
  return found, last
end

-- Whether a queue is the asked one, or one of the asked model's: its prefix and a class, which has no dot.
local function matches_queue(query, queue)
  if query.queue and query.queue ~= queue then return false end
  local prefix = query.queue_prefix
  if not prefix then return true end
  return queue ~= nil and string.sub(queue, 1, #prefix) == prefix
    and not string.find(queue, '.', #prefix + 1, true)
end

-- Whether the record of an entry (its state, tags, tenant and queue) matches a query.
local function matches_query(query, entry, job)
  if entry.state and entry.state ~= job.state then return false end -- an earlier job had this id
  if query.state and query.state ~= job.state then return false end
  if query.tenant and query.tenant ~= (job.tenant or DEFAULT_TENANT) then return false end
  if not matches_queue(query, job.queue) then return false end
  if not query.tag then return true end
  return string.find(',' .. (job.tags or '') .. ',', ',' .. query.tag .. ',', 1, true) ~= nil
end

-- A cursor as a reply: {at, id}, or {} if nothing follows.
local function cursor_reply(last)
  return last and { string.format('%.0f', last.at), last.id } or {}
end
