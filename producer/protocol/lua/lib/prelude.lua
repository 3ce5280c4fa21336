-- Shared by all scripts: producer/protocol/scripts.py puts this text and its neighbours in front of each one
-- (index, prelude, turns, events, batches, ends), as far as it is used, so that a job ends, is put
-- back and is announced in exactly one way. Keys are built here from ids:
-- the store is one Redis node (or a Sentinel pair), not a Cluster. Only commands of Redis 6.2. What
-- every script promises is told in docs/protocol.md.

local LEASES = 'batchmill:leases'
local DEADLINES = 'batchmill:deadlines'
local QUEUES = 'batchmill:queues'
local OUTBOX = 'batchmill:outbox'
local DEAD = 'batchmill:dead'
local TOTALS = 'batchmill:totals'
local DISABLED = 'batchmill:endpoints_disabled'
local BATCHES = 'batchmill:batches'
local BATCHES_DUE = 'batchmill:batches_due'
local UNUSABLE = 'batchmill:unusable'
local CELERY_ENDS = 'batchmill:celery_ends'
local INBOX = 'batchmill:inbox'
local INBOX_ARRIVED = 'batchmill:inbox:arrived'
local INBOX_TAKEN = 'batchmill:inbox:taken'
local INBOX_DOCUMENTS = 'batchmill:inbox:documents'
local SCHEDULED = 'batchmill:scheduled'
local USAGE = 'batchmill:usage'
local RECOUNT = 'batchmill:usage:recount'
local TENANTS = 'batchmill:tenants'
local WINDOW = 'batchmill:window'

local EVENT_TTL_MS = 8 * 24 * 3600 * 1000
local DEAD_TTL_MS = 30 * 24 * 3600 * 1000
local OUTPUT_EVENT_MS = 5000 -- a job's `output` events are at least that far apart
local ENDPOINT_PATIENCE_MS = 120 * 3600 * 1000 -- without a success: the endpoint is disabled
local FORGOTTEN_TTL_MS = 3600 * 1000 -- so long a repeated `forget` is known
local FAILING_TTL_MS = 48 * 3600 * 1000 -- longer than the longest wait between two attempts
local BATCH_PATIENCE_MS = 24 * 3600 * 1000 -- a batch that gets no line for so long is given up
local ATTEMPTS_KEPT = 20 -- lines of an event's log
local SUSPECT_LIMIT = 3 -- engine deaths in company after which a job runs alone
local CRASH_LIMIT = 3 -- engine deaths alone after which a job is given up
local WINDOW_JOBS = 8 -- messages that a queue's list holds, unless the operator has set another number
local VIRTUAL_UNITS = 1000 -- of virtual time for a token at weight 1: whole numbers, so nothing drifts
local TAKE_BACK_JOBS = 64 -- a message is searched in a list of at most that length

local TERMINAL = { completed = true, failed = true, cancelled = true, expired = true }

local function job_key(id) return 'batchmill:job:' .. id end
local function tokens_key(id) return 'batchmill:tokens:' .. id end
local function text_key(id) return 'batchmill:text:' .. id end
local function queued_key(queue) return 'batchmill:queued:' .. queue end
-- A tenant's name has no colon.
local function backlog_key(queue, tenant) return 'batchmill:backlog:' .. queue .. ':' .. tenant end
local function turns_key(queue) return 'batchmill:turns:' .. queue end
local function used_key(queue) return 'batchmill:used:' .. queue end
local function under_way_key(queue) return 'batchmill:under_way:' .. queue end
local function idempotency_key(key) return 'batchmill:idempotency:' .. key end
local function forgotten_key(id) return 'batchmill:forgotten:' .. id end
local function event_key(id) return 'batchmill:event:' .. id end
local function dead_key(id) return 'batchmill:dead:' .. id end
local function failing_key(endpoint) return 'batchmill:failing:' .. endpoint end
local function batch_key(id) return 'batchmill:batch:' .. id end
local function batch_jobs_key(id) return 'batchmill:batch_jobs:' .. id end
local function channel(id) return 'batchmill:events:' .. id end

-- Redis' own clock, so that no worker's clock can make a lease run out early or late.
local function now_us()
  local time = redis.call('TIME')
  return time[1] * 1000000 + time[2]
end

local function now_ms()
  return math.floor(now_us() / 1000)
end

-- Let the rest of the script write although Redis has reached maxmemory: Redis refuses a script for
-- that at its first write only, and this one needs no memory. Called by every script but those that
-- take in something new, so that work under way can go on, end and make room: a lease that cannot
-- be renewed because Redis is full would be a lost job.
local function write_even_when_full()
  redis.call('ZREM', LEASES, '')
end

-- What decides whether a holder may write: read for every job of a batch, so no more than that.
local function load_lease(id)
  local f = redis.call('HMGET', job_key(id), 'state', 'fence', 'cancel_requested', 'output_due_ms')
  if not f[1] then return nil end
  return {
    state = f[1],
    fence = tonumber(f[2]),
    cancel_requested = f[3] == '1',
    output_due_ms = tonumber(f[4] or nil), -- only where `output` events were asked for
  }
end

-- Leave a record that no script can work with to the sweep, which ends it: every script may come across
-- one, and few need what ends a job.
local function set_aside(id, why)
  redis.pcall('HSET', UNUSABLE, id, type(why) == 'table' and why.err or tostring(why))
end

-- The fields that decide what may happen to a job (never the document, which may be a megabyte).
-- nil where there is none.
local function read_job(id)
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
    tenant = f[16] or DEFAULT_TENANT, -- records of an older version name none
    cost = tonumber(f[17] or nil), -- and are not counted
    charge = tonumber(f[18] or nil),
    not_before_ms = tonumber(f[19] or nil),
    tags = f[20] or '',
    run = tonumber(f[21] or 1),
    celery_result = f[22] == '1',
  }
end

-- The same, but for a record that no batchmill wrote: that one is set aside, and then there is none.
-- So a script that comes across many jobs is not stopped by one of them.
local function load_job(id)
  local ok, job = pcall(read_job, id)
  if ok then return job end
  set_aside(id, job)
end

-- Whether the holder of this fence may still write.
local function holds(job, fence)
  return job ~= nil and job.state == 'in_progress' and job.fence == fence
end

-- A Celery protocol-2 message in kombu's envelope. It names the job and says nothing of its
-- content. The delivery tag has to be unique: kombu keeps unacknowledged messages under it. By
-- hand, because cjson writes an empty array and an empty object alike.
local ENVELOPE = '{"body":%s,"content-encoding":"utf-8","content-type":"application/json",'
  .. '"headers":{"lang":"py","task":"batchmill.generate","id":"%s","root_id":"%s",'
  .. '"parent_id":null,"group":null,"shadow":null,"eta":null,"expires":null,"retries":0,'
  .. '"timelimit":[null,null],"argsrepr":"()","kwargsrepr":"{...}","origin":"batchmill",'
  .. '"ignore_result":true},"properties":{"correlation_id":"%s","reply_to":"",'
  .. '"delivery_mode":2,"priority":0,"delivery_info":{"exchange":"","routing_key":%s},'
  .. '"delivery_tag":"%s.%d"}}'
local BODY = '[[],{"job":"%s","v":1},'
  .. '{"callbacks":null,"errbacks":null,"chain":null,"chord":null}]'

local function envelope(id, queue, number)
  local body = cjson.encode(string.format(BODY, id))
  return string.format(ENVELOPE, body, id, id, id, cjson.encode(queue), id, number)
end

-- Fields of a record that are whole numbers where they are there.
local NUMBERS = { 'fence', 'attempts', 'announcements', 'suspect', 'crashes', 'restarts', 'charge',
  'output_events', 'output_told', 'output_due_ms', 'enqueued_at_ms', 'started_at_ms', 'result_ttl_ms',
  'cost', 'run' }

-- Whether a job's own keys are such that scripts can work with them.
local function is_sound(id)
  if not pcall(read_job, id) then return false end
  for _, key in ipairs({ tokens_key(id), text_key(id) }) do
    local kind = redis.call('TYPE', key).ok
    if kind ~= 'string' and kind ~= 'none' then return false end
  end
  if redis.call('STRLEN', tokens_key(id)) % 4 > 0 then return false end
  for _, value in ipairs(redis.call('HMGET', job_key(id), unpack(NUMBERS))) do
    if value and (#value > 18 or not string.match(value, '^%-?%d+$')) then return false end
  end
  return redis.call('HEXISTS', job_key(id), 'doc') == 1
    and redis.call('HEXISTS', job_key(id), 'enqueued_at_ms') == 1
end

-- Run an action on one job's keys. Anybody who reaches Redis may have written those: what stumbles
-- over them is this job's end, and stops no other job's work. Without the fallback as an answer, a
-- batch would be repeated for ever. Where the fault is not in the job's own keys, it is no job's end.
local function guarded(id, fallback, action)
  local ok, answer = pcall(action)
  if ok then return answer end
  if is_sound(id) then error(answer, 0) end
  set_aside(id, answer)
  return fallback
end
