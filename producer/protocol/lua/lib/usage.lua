-- Counters of the jobs that have not ended, over all queues and per tenant. Limits are checked against them;
-- `recount.lua` rebuilds them, so that they become right again if keys were deleted by hand.
-- @include counters, keys, record

-- `jobs`, `bytes` (of documents) and `tokens` (estimated) count the waiting jobs; `unfinished` and `reserved` (bytes
-- that their outputs may take) the waiting and the running ones. Each counter exists per tenant as well.
local COUNTERS = { 'jobs', 'bytes', 'tokens', 'unfinished', 'reserved' }

-- Counters in the order of COUNTERS.
local function waiting_amounts(num_bytes, num_tokens) return { 1, num_bytes, num_tokens, 0, 0 } end
local function reserved_amounts(num_bytes) return { 0, 0, 0, 1, num_bytes } end

-- The counters in one hash, of all tenants together and of one tenant.
local function load_counters(key, tenant)
  local fields = {}
  for i, name in ipairs(COUNTERS) do
    fields[i] = name
    fields[i + #COUNTERS] = name .. ':' .. tenant
  end
  local values = redis.call('HMGET', key, 'recount', unpack(fields))
  local progress = table.remove(values, 1)
  for i = 1, #fields do values[i] = finite(values[i], 0) end
  return { key = key, tenant = tenant, fields = fields, values = values, progress = progress }
end

local function load_usage(tenant) return load_counters(USAGE, tenant) end

-- The progress of a recount; nil if none is running. The new counters hold the jobs that were submitted up to
-- `cursor`, and those submitted after `last`, which the recount does not visit.
local function parse_recount(text)
  local cursor, last, again, urgent = string.match(text, '^(%S+) (%S+) ([01]) ([01])$')
  if not (tonumber(cursor) and tonumber(last)) then return nil end
  return { cursor = cursor, last = last, again = again == '1', is_urgent = urgent == '1' }
end

-- Whether the new counters hold a job. Decided by its time of submission, which never changes.
local function is_recounted(progress, id)
  for _, state in ipairs(STATES) do
    local at = tonumber(redis.call('ZSCORE', state_index_key(state), id) or nil)
    if at then return at <= tonumber(progress.cursor) or at > tonumber(progress.last) end
  end
  return false
end

local function add_to_counters(counters, amounts, sign)
  local written, empty = {}, {}
  for i = 1, #counters.fields do
    local amount = amounts[(i - 1) % #COUNTERS + 1]
    local value = counters.values[i] + sign * amount
    counters.values[i] = value
    if value == 0 then
      empty[#empty + 1] = counters.fields[i]
    elseif amount ~= 0 then
      written[#written + 1] = counters.fields[i]
      written[#written + 1] = value
    end
  end
  if #written > 0 then redis.call('HSET', counters.key, unpack(written)) end
  if #empty > 0 then redis.call('HDEL', counters.key, unpack(empty)) end
end

-- Add a job to the counters (`sign` 1) or subtract it (-1). It must be in an index of states.
local function count_job(usage, id, amounts, sign)
  add_to_counters(usage, amounts, sign)
  local progress = usage.progress and parse_recount(usage.progress)
  if progress and is_recounted(progress, id) then
    add_to_counters(load_counters(RECOUNT, usage.tenant), amounts, sign)
  end
end

-- Count a job with a record that begins to wait (1) or no longer waits (-1).
local function count_stored_job(id, job, sign)
  local amounts = waiting_amounts(redis.call('HSTRLEN', job_key(id), 'doc'), job.cost)
  count_job(load_usage(job.tenant), id, amounts, sign)
end

-- Count a job that is to end (1), or has ended (-1): while it has not, memory for its output is reserved.
local function count_reservation(id, job, sign)
  count_job(load_usage(job.tenant), id, reserved_amounts(job.reserved_bytes), sign)
end

-- The virtual time charged to a tenant for its announced and running jobs of a queue.
local function under_way_field(tenant, queue) return 'under_way:' .. tenant .. ':' .. queue end

-- The estimated tokens of the jobs that wait in a queue and are not delayed.
local function queue_tokens_field(queue) return 'queue_tokens:' .. queue end

-- Add to a counter that has its own field, also in the new counters if they hold the job already.
local function add_to_field(id, field, amount)
  if amount == 0 then return end
  local function add(key)
    if increment(key, field, amount) == 0 then redis.call('HDEL', key, field) end
  end
  add(USAGE)
  local text = redis.call('HGET', USAGE, 'recount')
  local progress = text and parse_recount(text)
  if progress and is_recounted(progress, id) then add(RECOUNT) end
end

local function add_under_way(id, job, amount) add_to_field(id, under_way_field(job.tenant, job.queue), amount) end

-- Count the tokens of a job that begins to wait in its queue (1) or no longer waits there (-1). A delayed job waits
-- there from the end of its delay.
local function count_queue_tokens(id, job, sign) add_to_field(id, queue_tokens_field(job.queue), sign * job.cost) end
