-- A job's record: its states, the fields that scripts decide by, and what they do with a malformed one.
-- @include keys

local STATES = { 'queued', 'in_progress', 'completed', 'failed', 'cancelled', 'expired' }
local TERMINAL = { completed = true, failed = true, cancelled = true, expired = true }
local DEFAULT_TENANT = 'default'

-- The fields that decide whether a holder may write. A checkpoint reads them for every job, so there are no more.
local function load_lease(id)
  local f = redis.call('HMGET', job_key(id), 'state', 'fence', 'cancel_requested', 'output_due_ms')
  if not f[1] then return nil end
  return {
    state = f[1],
    fence = tonumber(f[2]),
    cancel_requested = f[3] == '1',
    output_due_ms = tonumber(f[4] or nil), -- only if the job's webhook asks for `output` events
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
    'charge', 'not_before_ms', 'tags', 'run', 'celery_result')
  if not f[1] then return nil end
  local is_state = f[1] == 'queued' or f[1] == 'in_progress' or TERMINAL[f[1]]
  if not (is_state and f[2] and tonumber(f[3]) and tonumber(f[6])) then
    error('state, queue, fence or result_ttl_ms is missing or wrong', 0)
  end
  return {
    state = f[1],
    queue = f[2],
    fence = tonumber(f[3]),
    owner = f[4] or '',
    webhook = f[5],
    result_ttl_ms = tonumber(f[6]),
    idempotency_key = f[7],
    deadline_at_ms = tonumber(f[8] or nil),
    cancel_requested = f[9] == '1',
    alone = f[10] == '1',
    v = f[11],
    completed_fence = tonumber(f[12] or nil),
    webhook_events = f[13],
    webhook_secret = f[14] or '',
    output_event = f[15],
    tenant = f[16] or DEFAULT_TENANT, -- records of an older version have no tenant
    cost = tonumber(f[17] or nil), -- nor a cost, and are not counted
    charge = tonumber(f[18] or nil),
    not_before_ms = tonumber(f[19] or nil),
    tags = f[20] or '',
    run = tonumber(f[21] or 1),
    celery_result = f[22] == '1',
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

-- The error field of a job or batch that a script ends.
local function error_json(code, message)
  return '{"code":"' .. code .. '","message":"' .. message .. '","retryable":false}'
end
