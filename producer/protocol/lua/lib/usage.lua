-- Counters of the jobs that have not ended, over all queues and per tenant. Limits are checked against them;
-- `recount.lua` rebuilds them, so that they become right again if keys were deleted by hand.
-- @include counters, keys, record

-- `jobs`, `bytes` (of documents) and `tokens` (estimated) count the waiting jobs; `unfinished` and `reserved` (bytes
-- that their outputs may take) the waiting and the running ones. Each counter exists per tenant as well.
local COUNTERS = { 'jobs', 'bytes', 'tokens', 'unfinished', 'reserved' }

-- What this script has changed and not written yet: amounts by field, by the id of the job.
local usage_changes = {}
-- Fields that it has read since it last wrote.
local usage_values = {}

-- The virtual time charged to a tenant for its announced and running jobs of a queue.
local function under_way_field(tenant, queue) return 'under_way:' .. tenant .. ':' .. queue end

-- The estimated tokens of the jobs that wait in a queue and are not delayed.
local function queue_tokens_field(queue) return 'queue_tokens:' .. queue end

-- Read those of these fields that are not known yet, and the progress of a recount with them.
local function read_usage(fields)
  local missing, num_missing = {}, 0
  for i = 1, #fields do
    if not usage_values[fields[i]] then
      num_missing = num_missing + 1
      missing[num_missing] = fields[i]
    end
  end
  if num_missing == 0 then return end
  local values = redis.call('HMGET', USAGE, 'recount', unpack(missing))
  usage_values.recount = values[1]
  for i = 1, num_missing do usage_values[missing[i]] = finite(values[i + 1], 0) end
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

-- Add amounts, by name, to a hash of counters. One that becomes 0 is removed. `names` are from `counter_names`, and
-- `values` has what they hold.
local function write_counters(key, names, values, amounts)
  local written, num_written, empty = {}, 0, nil
  for i = 2, #names do
    local name = names[i]
    local amount = amounts[name]
    local value = finite(values[i], 0) + amount
    if value == 0 then
      empty = empty or {}
      empty[#empty + 1] = name
    elseif amount ~= 0 then
      written[num_written + 1], written[num_written + 2] = name, value
      num_written = num_written + 2
    end
  end
  if num_written > 0 then redis.call('HSET', key, unpack(written)) end
  if empty then redis.call('HDEL', key, unpack(empty)) end
end

-- The field with the progress of a recount, and then the names of some amounts.
local function counter_names(amounts)
  local names, num_names = { 'recount' }, 1
  for name in pairs(amounts) do
    num_names = num_names + 1
    names[num_names] = name
  end
  return names
end

-- The same for counters of a recount.
-- @rare
local function add_to_counters(key, amounts)
  local names = counter_names(amounts)
  write_counters(key, names, redis.call('HMGET', key, unpack(names)), amounts)
end

-- What counters with these names hold, which this script may have read already.
local function counter_values(names)
  local values = {}
  for i = 1, #names do
    values[i] = usage_values[names[i]]
    if values[i] == nil then return redis.call('HMGET', USAGE, unpack(names)) end
  end
  return values
end

-- Add changes also to the new counters of a recount, as far as those hold the jobs already.
-- @rare
local function write_recounted(changes, progress)
  local recounted = {}
  for id, amounts in pairs(changes) do
    if is_recounted(progress, id) then
      for field, amount in pairs(amounts) do recounted[field] = (recounted[field] or 0) + amount end
    end
  end
  if next(recounted) then add_to_counters(RECOUNT, recounted) end
end

-- The sums of changes, by field.
local function sum_changes(changes)
  local first, sums = next(changes)
  if not next(changes, first) then return sums end -- of one job, as mostly
  sums = {}
  for _, amounts in pairs(changes) do
    for field, amount in pairs(amounts) do sums[field] = (sums[field] or 0) + amount end
  end
  return sums
end

-- Write all changes in two or three commands; also to the new counters, if those hold the jobs already. The jobs must
-- be in an index of states. `guard_job` does this after each job; a script that changes counters elsewhere does it
-- itself.
local function write_usage()
  if not next(usage_changes) then
    if not next(usage_values) then return end
    usage_values = {} -- a recount may replace the counters before the next change
    return
  end
  local changes = usage_changes
  usage_changes = {}
  local sums = sum_changes(changes)
  local names = counter_names(sums)
  local values = counter_values(names)
  usage_values = {}
  write_counters(USAGE, names, values, sums)
  local progress = values[1] and parse_recount(values[1])
  if progress then write_recounted(changes, progress) end
end

local function add_to_field(id, field, amount)
  if amount == 0 then return end
  local amounts = usage_changes[id]
  if not amounts then
    amounts = {}
    usage_changes[id] = amounts
  end
  amounts[field] = (amounts[field] or 0) + amount
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
  for _, amounts in pairs(usage_changes) do sum = sum + (amounts[field] or 0) end
  return sum
end

-- Count the tokens of a job that begins to wait in its queue (1) or no longer waits there (-1). A delayed job waits
-- there from the end of its delay.
local function count_queue_tokens(id, job, sign) add_to_field(id, queue_tokens_field(job.queue), sign * job.cost) end
