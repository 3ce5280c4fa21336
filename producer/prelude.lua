-- Shared by all scripts: producer/scripts.py puts this text in front of each one, so that a job
-- ends, is put back and is announced in exactly one way. Keys are built here from ids: the store is
-- one Redis node (or a Sentinel pair), not a Cluster. Only commands of Redis 6.2. What every script
-- promises is told in docs/protocol.md.

local LEASES = 'batchmill:leases'
local DEADLINES = 'batchmill:deadlines'
local QUEUES = 'batchmill:queues'
local OUTBOX = 'batchmill:outbox'
local DEAD = 'batchmill:dead'
local TOTALS = 'batchmill:totals'
local DISABLED = 'batchmill:endpoints_disabled'
local BATCHES = 'batchmill:batches'
local BATCHES_DUE = 'batchmill:batches_due'

local EVENT_TTL_MS = 8 * 24 * 3600 * 1000
local DEAD_TTL_MS = 30 * 24 * 3600 * 1000
local OUTPUT_EVENT_MS = 5000 -- a job's `output` events are at least that far apart
local ENDPOINT_PATIENCE_MS = 120 * 3600 * 1000 -- without a success: the endpoint is disabled
local FAILING_TTL_MS = 48 * 3600 * 1000 -- longer than the longest wait between two attempts
local BATCH_PATIENCE_MS = 24 * 3600 * 1000 -- a batch that gets no line for so long is given up
local ATTEMPTS_KEPT = 20 -- lines of an event's log
local SUSPECT_LIMIT = 3 -- engine deaths in company after which a job runs alone
local CRASH_LIMIT = 3 -- engine deaths alone after which a job is given up

local TERMINAL = { completed = true, failed = true, cancelled = true, expired = true }

local function job_key(id) return 'batchmill:job:' .. id end
local function tokens_key(id) return 'batchmill:tokens:' .. id end
local function text_key(id) return 'batchmill:text:' .. id end
local function queued_key(queue) return 'batchmill:queued:' .. queue end
local function idempotency_key(key) return 'batchmill:idempotency:' .. key end
local function event_key(id) return 'batchmill:event:' .. id end
local function dead_key(id) return 'batchmill:dead:' .. id end
local function failing_key(endpoint) return 'batchmill:failing:' .. endpoint end
local function batch_key(id) return 'batchmill:batch:' .. id end
local function batch_jobs_key(id) return 'batchmill:batch_jobs:' .. id end
local function channel(id) return 'batchmill:events:' .. id end

-- Redis' own clock, so that no worker's clock can make a lease run out early or late.
local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
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

-- The fields that decide what may happen to a job (never the document, which may be a megabyte).
-- nil where there is none.
local function load_job(id)
  local f = redis.call('HMGET', job_key(id), 'state', 'queue', 'fence', 'owner', 'webhook',
    'result_ttl_ms', 'idempotency_key', 'deadline_at_ms', 'cancel_requested', 'alone', 'v',
    'completed_fence', 'webhook_events', 'webhook_secret', 'output_event')
  if not f[1] then return nil end
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
  }
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

-- kombu pops from the right, so LPUSH is the end of the queue and RPUSH its head.
local function announce(id, queue, at_head, now)
  local number = redis.call('HINCRBY', job_key(id), 'announcements', 1)
  redis.call('HSET', job_key(id), 'announced_at_ms', now)
  redis.call('ZADD', queued_key(queue), now, id)
  redis.call(at_head and 'RPUSH' or 'LPUSH', queue, envelope(id, queue, number))
end

local function add_dead_letter(id, kind, reason, payload, source, now)
  redis.call('HSET', dead_key(id), 'id', id, 'kind', kind, 'reason', reason, 'payload', payload,
    'source', source, 'at_ms', now)
  redis.call('PEXPIRE', dead_key(id), DEAD_TTL_MS)
  redis.call('ZADD', DEAD, now, id)
end

-- The error of a job that no worker ended, as JSON.
local function error_json(code, message)
  return '{"code":"' .. code .. '","message":"' .. message .. '","retryable":false}'
end

-- Whether a job's webhook wants an event of this name; without a filter, only those of its end.
local function wants_event(job, name)
  if not job.webhook then return false end
  if not job.webhook_events then return TERMINAL[name] == true end
  return string.find(',' .. job.webhook_events .. ',', ',' .. name .. ',', 1, true) ~= nil
end

-- `suffix` tells several events of one kind apart; `num_tokens` is '' or the output so far. `job`
-- may be a batch, with `kind` 'batch'.
local function add_event(id, job, name, suffix, num_tokens, now, kind)
  local event_id = 'evt_' .. id .. '_' .. name .. suffix
  local event_type = (kind or 'generation') .. '.' .. name
  redis.call('HSET', event_key(event_id), 'id', event_id, 'type', event_type, 'job_id', id,
    'url', job.webhook, 'secret', job.webhook_secret, 'num_tokens', num_tokens,
    'state', 'pending', 'attempts', 0, 'fence', 0, 'created_at_ms', now)
  redis.call('ZADD', OUTBOX, now, event_id)
  return event_id
end

-- The end of a job says more than an `output` event that still waits, so that is dropped: it would
-- be tried for days.
local function drop_output_event(job)
  if not job.output_event then return end
  if redis.call('HGET', event_key(job.output_event), 'state') ~= 'pending' then return end
  -- Not deleted: a deliverer may be about to write its body.
  redis.call('HSET', event_key(job.output_event), 'state', 'superseded')
  redis.call('PEXPIRE', event_key(job.output_event), EVENT_TTL_MS)
  redis.call('ZREM', OUTBOX, job.output_event)
end

-- What deliveries to one receiver have in common: scheme, host, port and path, without the query.
local function endpoint_of(url)
  local origin, path = string.match(url, '^(%a[%w+.-]*://[^/?#]*)([^?#]*)')
  if not origin then return url end
  return string.lower(origin) .. (path == '' and '/' or path)
end

local function disable_endpoint(endpoint, reason, now)
  redis.call('HSETNX', DISABLED, endpoint, now .. ' ' .. reason)
  redis.call('DEL', failing_key(endpoint))
end

-- The end of an event's delivery, good or bad.
local function settle_event(id, url, outcome, status, reason, now)
  redis.call('ZREM', OUTBOX, id)
  redis.call('HSET', event_key(id), 'state', outcome, 'settled_at_ms', now, 'last_status', status,
    'last_error', reason)
  redis.call('PEXPIRE', event_key(id), EVENT_TTL_MS)
  redis.call('HINCRBY', TOTALS, 'webhook_' .. outcome, 1)
  if outcome ~= 'delivered' then add_dead_letter(id, 'webhook', outcome, reason, url, now) end
end

-- What decides about a batch; nil where there is none. `total` is known once no line can follow.
local function load_batch(id)
  local f = redis.call('HMGET', batch_key(id), 'state', 'total', 'completed', 'failed', 'error',
    'is_late', 'deadline_at_ms', 'result_ttl_ms', 'webhook', 'webhook_events', 'webhook_secret')
  if not f[1] then return nil end
  return {
    state = f[1],
    total = tonumber(f[2] or nil),
    num_ended = tonumber(f[3]) + tonumber(f[4]),
    error = f[5],
    is_late = f[6] == '1',
    deadline_at_ms = tonumber(f[7] or nil),
    result_ttl_ms = tonumber(f[8]),
    webhook = f[9],
    webhook_events = f[10],
    webhook_secret = f[11] or '',
  }
end

-- The end of a batch, in the script in which its last job ends or its last line is known.
local function end_batch_if_done(id, now)
  local batch = load_batch(id)
  if TERMINAL[batch.state] or not batch.total or batch.num_ended < batch.total then return end
  local state = 'completed'
  if batch.error then
    state = 'failed'
  elseif batch.state == 'cancelling' then
    state = 'cancelled'
  elseif batch.is_late then
    state = 'expired'
  end
  redis.call('HSET', batch_key(id), 'state', state, 'finalizing_at_ms', now, state .. '_at_ms', now)
  if wants_event(batch, state) then add_event(id, batch, state, '', '', now, 'batch') end
  redis.call('PEXPIRE', batch_key(id), batch.result_ttl_ms)
  redis.call('PEXPIRE', batch_jobs_key(id), batch.result_ttl_ms)
  redis.call('ZADD', BATCHES_DUE, now + batch.result_ttl_ms, id) -- the sweep ends its index entry
end

-- A batch is told of the end of each of its jobs once, whatever becomes of the job later.
local function count_in_batch(id, state, now)
  local batch_id = redis.call('HGET', job_key(id), 'batch')
  if not batch_id or redis.call('HSETNX', job_key(id), 'batch_counted', '1') == 0 then return end
  local batch = load_batch(batch_id)
  if not batch then return end -- deleted by hand
  local field = state == 'completed' and 'completed' or 'failed'
  redis.call('HINCRBY', batch_key(batch_id), field, 1)
  if state == 'expired' and batch.deadline_at_ms and batch.deadline_at_ms <= now then
    redis.call('HSET', batch_key(batch_id), 'is_late', '1')
  end
  end_batch_if_done(batch_id, now)
end

-- No line can follow, and the jobs that have not ended are to be cancelled: the sweep does so, page
-- by page, where the client that asked for it does not.
local function begin_to_cancel_batch(id, batch, error_text, now)
  redis.call('HSETNX', batch_key(id), 'cancelling_at_ms', now)
  redis.call('HSETNX', batch_key(id), 'total', redis.call('ZCARD', batch_jobs_key(id)))
  redis.call('HSET', batch_key(id), 'state', 'cancelling')
  if error_text ~= '' then redis.call('HSETNX', batch_key(id), 'error', error_text) end
  redis.call('ZADD', BATCHES_DUE, now, id)
  end_batch_if_done(id, now)
end

-- The one way into a terminal state: state, result, index removal, webhook event, TTLs, counters
-- and the wake-up of waiting clients, in one script.
local function finish(id, job, state, result, error_text, now)
  redis.call('ZREM', LEASES, id)
  redis.call('ZREM', queued_key(job.queue), id)
  redis.call('ZREM', DEADLINES, id)
  redis.call('HSET', job_key(id), 'state', state, 'finished_at_ms', now)
  if result ~= '' then redis.call('HSET', job_key(id), 'result', result) end
  if error_text ~= '' then redis.call('HSET', job_key(id), 'error', error_text) end
  drop_output_event(job)
  if wants_event(job, state) then add_event(id, job, state, '', '', now) end
  redis.call('PEXPIRE', job_key(id), job.result_ttl_ms)
  redis.call('PEXPIRE', tokens_key(id), job.result_ttl_ms)
  if result ~= '' then
    redis.call('DEL', text_key(id)) -- the result holds all of it
  else
    redis.call('PEXPIRE', text_key(id), job.result_ttl_ms)
  end
  count_in_batch(id, state, now)
  if job.idempotency_key then
    redis.call('PEXPIRE', idempotency_key(job.idempotency_key), job.result_ttl_ms)
  end
  redis.call('HINCRBY', TOTALS, state, 1)
  redis.call('PUBLISH', channel(id), '{"state":"' .. state .. '"}')
end

local function cancel(id, job, now)
  finish(id, job, 'cancelled', '', error_json('cancelled', 'the job was cancelled'), now)
end

local function expire(id, job, now)
  local text = error_json('deadline_exceeded', 'the deadline passed before the job was done')
  finish(id, job, 'expired', '', text, now)
end

local function give_up(id, job, now)
  local message = 'the engine died ' .. CRASH_LIMIT .. ' times while it ran this job alone'
  local document = redis.call('HGET', job_key(id), 'doc')
  add_dead_letter(id, 'job', 'attempts_exhausted', document, job.owner, now)
  finish(id, job, 'failed', '', error_json('attempts_exhausted', message), now)
end

-- in_progress -> queued, or to its end where nothing is left to wait for. Charges an engine death
-- to the job only where it ran alone; in company it becomes a suspect.
local function put_back(id, job, cause, now)
  redis.call('ZREM', LEASES, id)
  local crashes = 0
  if cause == 'engine_death' then
    crashes = redis.call('HINCRBY', job_key(id), job.alone and 'crashes' or 'suspect', 1)
  end
  if job.cancel_requested then
    cancel(id, job, now)
    return 'CANCELLED'
  end
  if job.alone and crashes >= CRASH_LIMIT then
    give_up(id, job, now)
    return 'DEAD'
  end
  if job.deadline_at_ms and job.deadline_at_ms <= now then
    expire(id, job, now)
    return 'EXPIRED'
  end
  redis.call('HSET', job_key(id), 'state', 'queued')
  redis.call('HDEL', job_key(id), 'owner')
  if job.deadline_at_ms then redis.call('ZADD', DEADLINES, job.deadline_at_ms, id) end
  announce(id, job.queue, true, now)
  return 'REQUEUED'
end

-- Append text at a position (in bytes). Text that does not connect to, or disagrees with, what is
-- stored is left out: readers get it with the result, and never anything that has to be taken back.
local function append_text(id, position, text)
  local key = text_key(id)
  local stored = redis.call('STRLEN', key)
  if stored < position or stored >= position + #text then return end
  local overlap = ''
  if stored > position then overlap = redis.call('GETRANGE', key, position, stored - 1) end
  if overlap ~= string.sub(text, 1, #overlap) then return end
  redis.call('APPEND', key, string.sub(text, #overlap + 1))
end

-- Append tokens at a position (in bytes), so that a call repeated after a lost answer changes
-- nothing. false where the tokens do not connect to, or disagree with, what is stored.
local function append_tokens(id, position, bytes)
  local key = tokens_key(id)
  local stored = redis.call('STRLEN', key)
  if stored < position then return false end
  if stored > position and #bytes > 0 then
    local overlap = redis.call('GETRANGE', key, position, position + #bytes - 1)
    if overlap ~= string.sub(bytes, 1, #overlap) then return false end
    bytes = string.sub(bytes, #overlap + 1)
  end
  if #bytes > 0 then redis.call('APPEND', key, bytes) end
  return true
end
