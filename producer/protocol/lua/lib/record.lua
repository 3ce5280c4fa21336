-- A job's record: its states, the fields that scripts decide by, and what they do with a malformed one.
-- @include counters, keys

local STATES = { 'queued', 'in_progress', 'completed', 'failed', 'cancelled', 'expired' }
local UNFINISHED_STATES = { 'queued', 'in_progress' }
local TERMINAL = { completed = true, failed = true, cancelled = true, expired = true }
local DEFAULT_TENANT = 'default'
local MAX_LEASES = 1000 -- in one command: Lua's stack has room for 8000 arguments
-- What the end of an attempt and of a job needs besides the fields that `load_job` always reads. `plan_identity` says
-- whether there is a `plan_state`, which may be long.
local END_FIELDS = { 'history', 'attempts', 'claimed_at_ms', 'claimed_tokens', 'used_tokens', 'api_key', 'model',
  'batch', 'gateway', 'receiver_events', 'celery_embed', 'sealed_with', 'plan_identity' }

-- A fence names one claim: its number, and the random nonce that its worker gave it. The number alone would be given
-- out twice if Redis lost its last writes.
local function fence_text(number, nonce) return (number or '') .. '.' .. (nonce or '') end

-- The fields that decide whether a holder may write. A checkpoint reads them for every job, so there are no more.
local function load_lease(id)
  local f = redis.call('HMGET', job_key(id), 'state', 'fence', 'cancel_requested', 'output_due_ms', 'claim_nonce',
    'identity')
  if not f[1] then return nil end
  return {
    state = f[1],
    fence = fence_text(f[2], f[5]),
    cancel_requested = f[3] == '1',
    output_due_ms = finite(f[4], nil), -- only if the job's webhook asks for `output` events
    identity = f[6],
  }
end

-- Leave a malformed record to the sweep, which ends it (`unusable.lua`). Any script may meet such a record, and few
-- of them carry the code that ends a job.
-- @rare
local function mark_unusable(id, reason)
  redis.pcall('HSET', UNUSABLE, id, type(reason) == 'table' and reason.err or tostring(reason))
end

-- Add further fields of a record to a job, under their names: text, or false if they are not set.
local function add_fields(job, names, values, offset)
  for i = 1, #names do job[names[i]] = values[offset + i] end
end

-- Read what the end of an attempt needs, unless `load_job` has read it already: only together are all of them read.
local function load_end_fields(id, job)
  if job.used_tokens ~= nil then return end -- `false` is a field that was read, and is not set
  add_fields(job, END_FIELDS, redis.call('HMGET', job_key(id), unpack(END_FIELDS)), 0)
end

local function check_record(state, queue, fence, result_ttl_ms)
  local is_state = state == 'queued' or state == 'in_progress' or TERMINAL[state]
  if not (is_state and queue and finite(fence, nil) and finite(result_ttl_ms, nil)) then
    error('state, queue, fence or result_ttl_ms is missing or wrong', 0)
  end
end

-- The fields of a record that decide what may happen to a job (never the document, which may have a megabyte), before
-- they are read. One constructor makes room for all of them at once.
local function new_job()
  return {
    state = false, queue = false, fence = false, owner = false, webhook = false, result_ttl_ms = false,
    idempotency_key = false, deadline_at_ms = false, cancel_requested = false, alone = false, v = false,
    completed_fence = false, webhook_events = false, webhook_secret = false, output_event = false, tenant = false,
    cost = false, charge = false, not_before_ms = false, tags = false, run = false, celery_result = false,
    claim_nonce = false, identity = false, reserved_bytes = false, traceparent = false,
    payloads = false, -- names of its objects outside Redis
    media = false, -- names of its pictures and sounds
    enqueued_at_ms = false,
    fence_number = false, submitted_at_ms = false, -- computed, not read
    history = nil, attempts = nil, claimed_at_ms = nil, claimed_tokens = nil, -- makes room for fields of scripts
  }
end

-- Turn the text of a job's fields into what scripts use. A malformed record is an error.
local function convert_fields(job)
  check_record(job.state, job.queue, job.fence, job.result_ttl_ms)
  job.fence_number = job.fence
  job.fence = fence_text(job.fence, job.claim_nonce)
  job.owner = job.owner or ''
  job.result_ttl_ms = finite(job.result_ttl_ms, nil)
  job.deadline_at_ms = finite(job.deadline_at_ms, nil)
  job.cancel_requested = job.cancel_requested == '1'
  job.alone = job.alone == '1'
  job.webhook_secret = job.webhook_secret or ''
  job.tenant = job.tenant or DEFAULT_TENANT
  job.cost = finite(job.cost, 0)
  job.charge = finite(job.charge, nil)
  job.not_before_ms = finite(job.not_before_ms, nil)
  job.tags = job.tags or ''
  job.run = finite(job.run, 1)
  job.celery_result = job.celery_result == '1'
  job.reserved_bytes = finite(job.reserved_bytes, 0)
  job.enqueued_at_ms = finite(job.enqueued_at_ms, nil)
  job.submitted_at_ms = job.run == 1 and job.enqueued_at_ms or nil -- its place in the indexes, which a retry keeps
  return job
end

-- A job by its record; nil if there is none. `...` names further fields, which are read in the same command and become
-- text or false. A malformed record is an error.
local function read_valid_job(id, ...)
  local names = { 'state', 'queue', 'fence', 'owner', 'webhook', 'result_ttl_ms', 'idempotency_key', 'deadline_at_ms',
    'cancel_requested', 'alone', 'v', 'completed_fence', 'webhook_events', 'webhook_secret', 'output_event', 'tenant',
    'cost', 'charge', 'not_before_ms', 'tags', 'run', 'celery_result', 'claim_nonce', 'identity', 'reserved_bytes',
    'traceparent', 'payloads', 'enqueued_at_ms', 'media', ... }
  local values = redis.call('HMGET', job_key(id), unpack(names))
  if not values[1] then return nil end
  local job = new_job()
  add_fields(job, names, values, 0)
  return convert_fields(job)
end

-- The same, but a malformed record is marked and treated as missing, so that it cannot stop a script that handles
-- many jobs.
local function load_job(id, ...)
  local ok, job = pcall(read_valid_job, id, ...)
  if ok then return job end
  mark_unusable(id, job)
end

-- The same with the whole record, for a script that needs the document: reading all fields takes half of the time of
-- naming most of them. Those that have no name here are left out.
local function load_whole_job(id, names)
  local ok, job = pcall(function()
    local found, job = redis.call('HGETALL', job_key(id)), new_job()
    for i = 1, #names do job[names[i]] = false end
    for i = 1, #found, 2 do
      local name = found[i]
      if job[name] ~= nil then job[name] = found[i + 1] end
    end
    if job.state then return convert_fields(job) end
  end)
  if ok then return job end
  mark_unusable(id, job)
end

-- Whether the sender or the tasks that follow wait for Celery's report of the job's end.
local function is_celery_task(id, job)
  if job.celery_result then return true end
  if job.celery_embed == nil then return redis.call('HEXISTS', job_key(id), 'celery_embed') == 1 end
  return job.celery_embed ~= false
end

-- A number of a record, plus one, as text. Text that is not a whole number is an error, as for HINCRBY.
local function next_number(text)
  if text and not (#text <= 15 and string.match(text, '^%-?%d+$')) then error('not a whole number', 0) end
  return string.format('%d', text and text + 1 or 1)
end

-- Whether the holder of this fence may still write.
local function holds_lease(job, fence)
  return job ~= nil and job.state == 'in_progress' and job.fence == fence
end

-- Whether the holder of this fence may write output that an engine of this identity computed ('' = no output).
local function may_write_output(job, fence, identity)
  return holds_lease(job, fence) and (identity == '' or job.identity == identity)
end

-- Forget the saved state of a job's plan.
-- @rare
local function discard_plan(id) redis.call('HDEL', job_key(id), 'plan_state', 'plan_identity') end

-- Extend leases: `entries` lists their ends and the ids of their jobs in turn.
local function extend_leases(entries)
  for first = 1, #entries, MAX_LEASES * 2 do
    redis.call('ZADD', LEASES, unpack(entries, first, math.min(first + MAX_LEASES * 2 - 1, #entries)))
  end
end

-- The error field of a job or batch that a script ends.
local function error_json(code, message)
  return '{"code":"' .. code .. '","message":"' .. message .. '","retryable":false}'
end
