-- A job's record: its states, the fields that scripts decide by, and what they do with a malformed one.
-- @include counters, keys

local STATES = { 'queued', 'in_progress', 'completed', 'failed', 'cancelled', 'expired' }
local UNFINISHED_STATES = { 'queued', 'in_progress' }
local TERMINAL = { completed = true, failed = true, cancelled = true, expired = true }
local DEFAULT_TENANT = 'default'

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

-- The fields that decide what may happen to a job (never the document, which may have a megabyte); nil if there is
-- no record. A malformed record is an error.
local function read_valid_job(id)
  local f = redis.call('HMGET', job_key(id), 'state', 'queue', 'fence', 'owner', 'webhook',
    'result_ttl_ms', 'idempotency_key', 'deadline_at_ms', 'cancel_requested', 'alone', 'v',
    'completed_fence', 'webhook_events', 'webhook_secret', 'output_event', 'tenant', 'cost',
    'charge', 'not_before_ms', 'tags', 'run', 'celery_result', 'claim_nonce', 'identity', 'reserved_bytes',
    'traceparent', 'payloads')
  if not f[1] then return nil end
  local is_state = f[1] == 'queued' or f[1] == 'in_progress' or TERMINAL[f[1]]
  if not (is_state and f[2] and finite(f[3], nil) and finite(f[6], nil)) then
    error('state, queue, fence or result_ttl_ms is missing or wrong', 0)
  end
  return {
    state = f[1],
    queue = f[2],
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
    run = finite(f[21], 1),
    celery_result = f[22] == '1',
    identity = f[24],
    reserved_bytes = finite(f[25], 0),
    traceparent = f[26],
    payloads = f[27], -- names of its objects outside Redis
  }
end

-- The same, but a malformed record is marked and treated as missing, so that it cannot stop a script that handles
-- many jobs.
local function load_job(id)
  local ok, job = pcall(read_valid_job, id)
  if ok then return job end
  mark_unusable(id, job)
end

-- Whether the sender or the tasks that follow wait for Celery's report of the job's end.
local function is_celery_task(id, job)
  return job.celery_result or redis.call('HEXISTS', job_key(id), 'celery_embed') == 1
end

-- Whether the holder of this fence may still write.
local function holds_lease(job, fence)
  return job ~= nil and job.state == 'in_progress' and job.fence == fence
end

-- Whether the holder of this fence may write output that an engine of this identity computed ('' = no output).
local function may_write_output(job, fence, identity)
  return holds_lease(job, fence) and (identity == '' or job.identity == identity)
end

-- The error field of a job or batch that a script ends.
local function error_json(code, message)
  return '{"code":"' .. code .. '","message":"' .. message .. '","retryable":false}'
end
