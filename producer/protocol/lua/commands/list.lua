-- Read one page of the jobs that match a query. Writes nothing.
-- KEYS: none. ARGV: limit (jobs), examined (index entries to examine), number of fields, fields..., query.
-- Reply: {cursor ({} at the end), jobs}; a job is {id, fields..., time of submission, bytes of tokens}.
-- @include keys, query
local limit, examined, num_fields = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local fields = { 'state', 'tags', 'tenant', 'queue' }
for i = 1, num_fields do fields[#fields + 1] = ARGV[3 + i] end
local query = parse_query(4 + num_fields)

local entries, last = read_page(query, examined)
local jobs = {}
for _, entry in ipairs(entries) do
  if #jobs == limit then break end
  query.cursor = entry
  local f = redis.pcall('HMGET', job_key(entry.id), unpack(fields))
  if f.err then f = {} end -- a key of another type, which batchmill did not write
  local job = { state = f[1], tags = f[2] or nil, tenant = f[3] or nil, queue = f[4] or nil }
  if job.state and matches_query(query, entry, job) then
    local row = { entry.id }
    for i = 5, #fields do row[#row + 1] = f[i] or '' end
    row[#row + 1] = string.format('%.0f', entry.at)
    local length = redis.pcall('STRLEN', tokens_key(entry.id))
    row[#row + 1] = type(length) == 'number' and length or 0
    jobs[#jobs + 1] = row
  end
end
local is_whole = query.cursor == entries[#entries] or #entries == 0
if is_whole and not last then return { {}, jobs } end
return { cursor_reply(query.cursor), jobs }
