-- Which jobs there are, by state, tag and tenant, in the order in which they were submitted. Shared by
-- all scripts like prelude.lua, which comes after it. An entry lives exactly as long as its record:
-- EXPIRING holds, under the time at which a record goes, what is to be taken out then.

local EXPIRING = 'batchmill:jobs:expiring'
local DEFAULT_TENANT = 'default'
local STATES = { 'queued', 'in_progress', 'completed', 'failed', 'cancelled', 'expired' }

local function state_index(state) return 'batchmill:jobs:state:' .. state end
local function tag_index(tag) return 'batchmill:jobs:tag:' .. tag end
local function tenant_index(tenant) return 'batchmill:jobs:tenant:' .. tenant end

-- The indexes of a job beside that of its state. Tags stand in the record with commas between them;
-- no tag holds one. The default tenant has none: most jobs are its, and the states hold them all.
local function label_indexes(job)
  local names = {}
  if job.tenant and job.tenant ~= DEFAULT_TENANT then names[1] = tenant_index(job.tenant) end
  if not job.tags then return names end
  for tag in string.gmatch(job.tags, '[^,]+') do names[#names + 1] = tag_index(tag) end
  return names
end

-- `at` is the time of submission for good: no change of state and no retry moves a job in the
-- order, so a reader who goes through it by pages misses none and meets none twice.
local function index_job(id, state, job, at)
  redis.call('ZADD', state_index(state), at, id)
  for _, index in ipairs(label_indexes(job)) do redis.call('ZADD', index, at, id) end
end

local function unindex_job(id, state, job)
  redis.call('ZREM', state_index(state), id)
  for _, index in ipairs(label_indexes(job)) do redis.call('ZREM', index, id) end
end

-- A job without an entry was submitted by a version that had no index.
local function index_state(id, from, to, now)
  local at = redis.call('ZSCORE', state_index(from), id) or now
  redis.call('ZREM', state_index(from), id)
  redis.call('ZADD', state_index(to), at, id)
end

-- What is to be taken out with an ended job's record.
local function expiring_entry(id, state, job)
  return table.concat({ id, state, job.tenant or DEFAULT_TENANT, job.tags or '' }, '\n')
end

local function read_expiring_entry(entry)
  local id, state, tenant, tags = string.match(entry, '^(.-)\n(.-)\n(.-)\n(.*)$')
  return id, state, { tenant = tenant, tags = tags }
end
