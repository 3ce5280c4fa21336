-- The indexes of all jobs by state, tag and tenant, in the order of submission. An entry lives exactly as long as its
-- record: EXPIRING lists the entries to remove, scored by the time at which their record expires.
-- @include foreign_keys, keys, record

-- The indexes of a job besides that of its state. A record holds its tags with commas between them; no tag contains a
-- comma. The default tenant has no index: most jobs are its own, and the state indexes hold them all.
local function label_indexes(job)
  local names = {}
  if job.tenant and job.tenant ~= DEFAULT_TENANT then names[1] = tenant_index_key(job.tenant) end
  if not job.tags then return names end
  for tag in string.gmatch(job.tags, '[^,]+') do names[#names + 1] = tag_index_key(tag) end
  return names
end

-- `at` stays the time of submission: no change of state and no retry moves a job in the order, so a reader who pages
-- through it misses no job and sees none twice.
local function index_job(id, state, job, at)
  add_entry(state_index_key(state), at, id)
  for _, index in ipairs(label_indexes(job)) do add_entry(index, at, id) end
end

local function unindex_job(id, state, job)
  redis.call('ZREM', state_index_key(state), id)
  for _, index in ipairs(label_indexes(job)) do redis.pcall('ZREM', index, id) end
end

-- A job without an entry was submitted by a version that had no index.
local function move_state_entry(id, job, to, now)
  local from = state_index_key(job.state)
  local at = job.submitted_at_ms or redis.call('ZSCORE', from, id) or now
  redis.call('ZREM', from, id)
  add_entry(state_index_key(to), at, id)
end

-- Names all index entries to remove when the record of an ended job expires.
local function expiring_entry(id, state, job)
  return table.concat({ id, state, job.tenant or DEFAULT_TENANT, job.tags or '' }, '\n')
end

local function parse_expiring_entry(entry)
  local id, state, tenant, tags = string.match(entry, '^(.-)\n(.-)\n(.-)\n(.*)$')
  return id, state, { tenant = tenant, tags = tags }
end
