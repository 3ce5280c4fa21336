-- Counters of the waiting jobs, over all queues and per tenant: jobs, bytes and tokens. Limits are checked against
-- them; `recount.lua` rebuilds them if they are wrong.
-- @include keys, record

-- The counters in one hash, of all tenants together and of one tenant.
local function load_counters(key, tenant)
  local fields = { 'jobs', 'bytes', 'tokens', 'jobs:' .. tenant, 'bytes:' .. tenant,
    'tokens:' .. tenant, 'recount' }
  local values = redis.call('HMGET', key, unpack(fields))
  for i = 1, 6 do values[i] = tonumber(values[i] or 0) end
  return { key = key, tenant = tenant, fields = fields, values = values }
end

local function load_usage(tenant) return load_counters(USAGE, tenant) end

-- The progress of a recount; nil if none is running. The new counters hold the jobs that were submitted up to
-- `cursor`, and those submitted after `last`, which the recount does not visit.
local function parse_recount(text)
  local cursor, last, again = string.match(text, '^(%S+) (%S+) ([01])$')
  if not (tonumber(cursor) and tonumber(last)) then return nil end
  return { cursor = cursor, last = last, again = again == '1' }
end

-- Whether the new counters hold a job. Decided by its time of submission, which never changes.
local function is_recounted(progress, id)
  for _, state in ipairs(STATES) do
    local at = tonumber(redis.call('ZSCORE', state_index_key(state), id) or nil)
    if at then return at <= tonumber(progress.cursor) or at > tonumber(progress.last) end
  end
  return false
end

local function add_to_counters(counters, num_bytes, num_tokens, sign)
  local amounts, written, empty = { 1, num_bytes, num_tokens }, {}, {}
  for i = 1, 6 do
    local value = counters.values[i] + sign * amounts[(i - 1) % 3 + 1]
    if value == 0 then
      empty[#empty + 1] = counters.fields[i]
    else
      written[#written + 1] = counters.fields[i]
      written[#written + 1] = value
    end
  end
  if #written > 0 then redis.call('HSET', counters.key, unpack(written)) end
  if #empty > 0 then redis.call('HDEL', counters.key, unpack(empty)) end
end

-- Add a waiting job to the counters (`sign` 1) or subtract it (-1). It must be in an index of states.
local function count_waiting_job(usage, id, num_bytes, num_tokens, sign)
  add_to_counters(usage, num_bytes, num_tokens, sign)
  local progress = usage.values[7] and parse_recount(usage.values[7])
  if progress and is_recounted(progress, id) then
    add_to_counters(load_counters(RECOUNT, usage.tenant), num_bytes, num_tokens, sign)
  end
end

-- The same for a job that has a record.
local function count_stored_job(id, job, sign)
  if not job.cost then return end
  count_waiting_job(load_usage(job.tenant), id, redis.call('HSTRLEN', job_key(id), 'doc'), job.cost, sign)
end
