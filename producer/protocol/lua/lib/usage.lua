-- Counters of the jobs that have not ended, over all queues and per tenant. Limits are checked against them;
-- `recount.lua` rebuilds them, so that they become right again if keys were deleted by hand.
-- @include counters, keys, record

-- `jobs`, `bytes` (of documents) and `tokens` (estimated) count the waiting jobs; `unfinished` and `reserved` (bytes
-- that their outputs may take) the waiting and the running ones. Each counter exists per tenant as well.
local COUNTERS = { 'jobs', 'bytes', 'tokens', 'unfinished', 'reserved' }

-- What this script has changed and not written yet: an id, a field and an amount, one after another.
local usage_changes = {}
-- Fields that it has read since it last wrote.
local usage_values = {}

-- The virtual time charged to a tenant for its announced and running jobs of a queue.
local function under_way_field(tenant, queue) return 'under_way:' .. tenant .. ':' .. queue end

-- The estimated tokens of the jobs that wait in a queue and are not delayed.
local function queue_tokens_field(queue) return 'queue_tokens:' .. queue end

-- Read those of these fields that are not known yet, and the progress of a recount with them.
local function read_usage(fields)
  local missing = {}
  for _, field in ipairs(fields) do
    if not usage_values[field] then missing[#missing + 1] = field end
  end
  if #missing == 0 then return end
  local values = redis.call('HMGET', USAGE, 'recount', unpack(missing))
  usage_values.recount = values[1]
  for i, field in ipairs(missing) do usage_values[field] = finite(values[i + 1], 0) end
end

-- All counters, by field, with those of a tenant (`jobs:<tenant>`), and what a job of a queue changes besides.
local function load_usage(tenant, queue)
  local fields = { queue_tokens_field(queue), under_way_field(tenant, queue) }
  for _, name in ipairs(COUNTERS) do
    fields[#fields + 1] = name
    fields[#fields + 1] = name .. ':' .. tenant
  end
  read_usage(fields)
  return usage_values
end

-- The progress of a recount; nil if none is running. The new counters hold the jobs that were submitted up to
-- `cursor`, and those submitted after `last`, which the recount does not visit.
-- @rare
local function parse_recount(text)
  local cursor, last, again, urgent = string.match(text, '^(%S+) (%S+) ([01]) ([01])$')
  if not (tonumber(cursor) and tonumber(last)) then return nil end
  return { cursor = cursor, last = last, again = again == '1', is_urgent = urgent == '1' }
end

-- Whether the new counters hold a job. Decided by its time of submission, which never changes.
-- @rare
local function is_recounted(progress, id)
  for _, state in ipairs(STATES) do
    local at = tonumber(redis.call('ZSCORE', state_index_key(state), id) or nil)
    if at then return at <= tonumber(progress.cursor) or at > tonumber(progress.last) end
  end
  return false
end

-- Add amounts to fields of a hash of counters, by field. One that becomes 0 is removed. `known` holds their values.
local function add_to_counters(key, amounts, known)
  local fields, written, empty = {}, {}, {}
  for field in pairs(amounts) do fields[#fields + 1] = field end
  local values = known or redis.call('HMGET', key, unpack(fields))
  for i, field in ipairs(fields) do
    local value = (known and known[field] or finite(values[i], 0)) + amounts[field]
    if value == 0 then
      empty[#empty + 1] = field
    elseif amounts[field] ~= 0 then
      written[#written + 1] = field
      written[#written + 1] = value
    end
  end
  if #written > 0 then redis.call('HSET', key, unpack(written)) end
  if #empty > 0 then redis.call('HDEL', key, unpack(empty)) end
end

-- Write all changes in two or three commands; also to the new counters, if those hold the jobs already. The jobs must
-- be in an index of states. `guard_job` does this after each job; a script that changes counters elsewhere does it
-- itself.
local function write_usage()
  if #usage_changes == 0 then
    usage_values = {} -- a recount may replace the counters before the next change
    return
  end
  local changes, sums, fields = usage_changes, {}, {}
  usage_changes = {}
  for i = 1, #changes, 3 do
    local field = changes[i + 1]
    if not sums[field] then fields[#fields + 1] = field end
    sums[field] = (sums[field] or 0) + changes[i + 2]
  end
  read_usage(fields)
  local known = usage_values
  usage_values = {}
  add_to_counters(USAGE, sums, known)
  local progress = known.recount and parse_recount(known.recount)
  if not progress then return end
  local recounted, is_in_new = {}, {}
  for i = 1, #changes, 3 do
    local id, field = changes[i], changes[i + 1]
    if is_in_new[id] == nil then is_in_new[id] = is_recounted(progress, id) end
    if is_in_new[id] then recounted[field] = (recounted[field] or 0) + changes[i + 2] end
  end
  if next(recounted) then add_to_counters(RECOUNT, recounted) end
end

local function add_to_field(id, field, amount)
  if amount == 0 then return end
  local n = #usage_changes
  usage_changes[n + 1], usage_changes[n + 2], usage_changes[n + 3] = id, field, amount
end

-- Add to a counter of all tenants and to that of one.
local function add_to_both(id, job, name, amount)
  add_to_field(id, name, amount)
  add_to_field(id, name .. ':' .. job.tenant, amount)
end

-- Count a job with a record that begins to wait (1) or no longer waits (-1). `job.num_bytes` are those of its document,
-- if they are known.
local function count_stored_job(id, job, sign)
  add_to_both(id, job, 'jobs', sign)
  add_to_both(id, job, 'bytes', sign * (job.num_bytes or redis.call('HSTRLEN', job_key(id), 'doc')))
  add_to_both(id, job, 'tokens', sign * job.cost)
end

-- Count a job that is to end (1), or has ended (-1): while it has not, memory for its output is reserved.
local function count_reservation(id, job, sign)
  add_to_both(id, job, 'unfinished', sign)
  add_to_both(id, job, 'reserved', sign * job.reserved_bytes)
end

local function add_under_way(id, job, amount) add_to_field(id, under_way_field(job.tenant, job.queue), amount) end

-- The virtual time charged to a tenant, with the changes of this script.
local function load_under_way(tenant, queue)
  local field = under_way_field(tenant, queue)
  read_usage({ field })
  local sum = usage_values[field]
  for i = 1, #usage_changes, 3 do
    if usage_changes[i + 1] == field then sum = sum + usage_changes[i + 2] end
  end
  return sum
end

-- Count the tokens of a job that begins to wait in its queue (1) or no longer waits there (-1). A delayed job waits
-- there from the end of its delay.
local function count_queue_tokens(id, job, sign) add_to_field(id, queue_tokens_field(job.queue), sign * job.cost) end
