-- A job's record: its states, the fields that scripts decide by, and what they do with a malformed one.
-- @include counters, keys

local STATES = { 'queued', 'in_progress', 'completed', 'failed', 'cancelled', 'expired' }
local UNFINISHED_STATES = { 'queued', 'in_progress' }
local TERMINAL = { completed = true, failed = true, cancelled = true, expired = true }
local DEFAULT_TENANT = 'default'
local MAX_LEASES = 1000 -- in one command: Lua's stack has room for 8000 arguments
-- What the end of an attempt and of a job needs besides the fields that `load_job` always reads.
local END_FIELDS = { 'history', 'attempts', 'claimed_at_ms', 'claimed_tokens', 'used_tokens', 'api_key', 'model',
  'batch', 'gateway', 'receiver_events', 'celery_embed', 'sealed_with' }

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
local function mark_unusable(id, reason)
  redis.pcall('HSET', UNUSABLE, id, type(reason) == 'table' and reason.err or tostring(reason))
end

-- Add further fields of a record to a job, under their names: text, or false if they are not set.
local function add_fields(job, names, values, offset)
  for i, name in ipairs(names) do job[name] = values[offset + i] end
end

-- Read what the end of an attempt needs, unless `load_job` has read all of it already.
local function load_end_fields(id, job)
  for _, name in ipairs(END_FIELDS) do
    if job[name] == nil then -- `false` is a field that was read, and is not set
      add_fields(job, END_FIELDS, redis.call('HMGET', job_key(id), unpack(END_FIELDS)), 0)
      return
    end
  end
end

local function check_record(state, queue, fence, result_ttl_ms)
  local is_state = state == 'queued' or state == 'in_progress' or TERMINAL[state]
  if not (is_state and queue and finite(fence, nil) and finite(result_ttl_ms, nil)) then
    error('state, queue, fence or result_ttl_ms is missing or wrong', 0)
  end
end

-- The fields that decide what may happen to a job (never the document, which may have a megabyte); nil if there is
-- no record. A malformed record is an error. `...` names further fields, which are read in the same command.
local function read_valid_job(id, ...)
  local f = redis.call('HMGET', job_key(id), 'state', 'queue', 'fence', 'owner', 'webhook',
    'result_ttl_ms', 'idempotency_key', 'deadline_at_ms', 'cancel_requested', 'alone', 'v',
    'completed_fence', 'webhook_events', 'webhook_secret', 'output_event', 'tenant', 'cost',
    'charge', 'not_before_ms', 'tags', 'run', 'celery_result', 'claim_nonce', 'identity', 'reserved_bytes',
    'traceparent', 'payloads', 'enqueued_at_ms', 'media', ...)
  if not f[1] then return nil end
  check_record(f[1], f[2], f[3], f[6])
  local run = finite(f[21], 1)
  local job = {
    state = f[1],
    queue = f[2],
    fence_number = f[3],
    claim_nonce = f[23],
    fence = fence_text(f[3], f[23]),
    owner = f[4] or '',
    webhook = f[5],
    result_ttl_ms = finite(f[6], nil),
    idempotency_key = f[7],
    deadline_at_ms = finite(f[8], nil),
    cancel_requested = f[9] == '1',
    alone = f[10] == '1',
    v = f[11],
    completed_fence = f[12],
    webhook_events = f[13],
    webhook_secret = f[14] or '',
    output_event = f[15],
    tenant = f[16] or DEFAULT_TENANT,
    cost = finite(f[17], 0),
    charge = finite(f[18], nil),
    not_before_ms = finite(f[19], nil),
    tags = f[20] or '',
    run = run,
    celery_result = f[22] == '1',
    identity = f[24],
    reserved_bytes = finite(f[25], 0),
    traceparent = f[26],
    payloads = f[27], -- names of its objects outside Redis
    enqueued_at_ms = finite(f[28], nil),
    media = f[29], -- names of its pictures and sounds
    submitted_at_ms = run == 1 and finite(f[28], nil) or nil, -- its place in the indexes; a retry does not change that
  }
  if ... then add_fields(job, { ... }, f, 29) end
  return job
end

-- The same, but a malformed record is marked and treated as missing, so that it cannot stop a script that handles
-- many jobs.
local function load_job(id, ...)
  local ok, job = pcall(read_valid_job, id, ...)
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
  return string.format('%.0f', (tonumber(text or nil) or 0) + 1)
end

-- Whether the holder of this fence may still write.
local function holds_lease(job, fence)
  return job ~= nil and job.state == 'in_progress' and job.fence == fence
end

-- Whether the holder of this fence may write output that an engine of this identity computed ('' = no output).
local function may_write_output(job, fence, identity)
  return holds_lease(job, fence) and (identity == '' or job.identity == identity)
end

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
