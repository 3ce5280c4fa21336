-- ARGV: limit (jobs), examined (index entries to look at), number of fields, fields..., query.
-- Reads only. Answers {cursor ({} at the end), jobs}, a job being {id, fields..., bytes of tokens}.
local limit, examined, num_fields = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local fields = { 'state', 'tags', 'tenant' }
for i = 1, num_fields do fields[#fields + 1] = ARGV[3 + i] end
local query = read_query(4 + num_fields)

local entries, last = index_page(query, examined)
local jobs = {}
for _, entry in ipairs(entries) do
  if #jobs == limit then break end
  query.cursor = entry
  local f = redis.pcall('HMGET', job_key(entry.id), unpack(fields))
  if f.err then f = {} end -- a key that no batchmill wrote: no job
  local job = { state = f[1], tags = f[2] or nil, tenant = f[3] or nil }
  if job.state and is_meant(query, entry, job) then
    local row = { entry.id }
    for i = 4, #fields do row[#row + 1] = f[i] or '' end
    local length = redis.pcall('STRLEN', tokens_key(entry.id))
    row[#row + 1] = type(length) == 'number' and length or 0
    jobs[#jobs + 1] = row
  end
end
local is_whole = query.cursor == entries[#entries] or #entries == 0
if is_whole and not last then return { {}, jobs } end
return { cursor_reply(query.cursor), jobs }
