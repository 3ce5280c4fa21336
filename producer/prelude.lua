-- Shared by all scripts: producer/scripts.py puts index.lua and this text in front of each one, so
-- that a job ends, is put back and is announced in exactly one way. Keys are built here from ids:
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
local TENANTS = 'batchmill:tenants'
local WINDOW = 'batchmill:window'

local EVENT_TTL_MS = 8 * 24 * 3600 * 1000
local DEAD_TTL_MS = 30 * 24 * 3600 * 1000
local OUTPUT_EVENT_MS = 5000 -- a job's `output` events are at least that far apart
local ENDPOINT_PATIENCE_MS = 120 * 3600 * 1000 -- without a success: the endpoint is disabled
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

-- What a number of tokens is in a tenant's virtual time.
local function virtual_units(num_tokens, tenant)
  local weight = tonumber(redis.call('HGET', TENANTS, tenant .. ':weight') or 1)
  return math.floor(num_tokens * VIRTUAL_UNITS / weight + 0.5)
end

-- Note what a job is expected to cost its tenant, from its first announcement until its end.
local function charge(id, job)
  if job.charge or not job.cost then return end
  job.charge = virtual_units(job.cost, job.tenant)
  redis.call('HSET', job_key(id), 'charge', job.charge)
  redis.call('HINCRBY', under_way_key(job.queue), job.tenant, job.charge)
  redis.call('ZADD', turns_key(job.queue), 'XX', 'INCR', job.charge, job.tenant)
end

-- Put what a job really cost in the place of its charge.
local function settle_charge(id, job, num_tokens)
  if not job.charge then return end
  redis.call('HDEL', job_key(id), 'charge')
  if redis.call('HINCRBY', under_way_key(job.queue), job.tenant, -job.charge) == 0 then
    redis.call('HDEL', under_way_key(job.queue), job.tenant)
  end
  local used = virtual_units(num_tokens, job.tenant)
  redis.call('ZADD', used_key(job.queue), 'XX', 'INCR', used, job.tenant)
  redis.call('ZADD', turns_key(job.queue), 'XX', 'INCR', used - job.charge, job.tenant)
end

-- The least that a tenant with waiting jobs has used of a queue. Tenants that used less and wait for
-- nothing are forgotten: idling saves up nothing.
local function virtual_time(queue)
  if redis.call('EXISTS', turns_key(queue)) == 0 then
    redis.call('DEL', used_key(queue))
    return 0
  end
  while true do
    local first = redis.call('ZRANGE', used_key(queue), 0, 0, 'WITHSCORES')
    if not first[1] then return 0 end
    if redis.call('ZSCORE', turns_key(queue), first[1]) then return tonumber(first[2]) end
    redis.call('ZREM', used_key(queue), first[1])
  end
end

-- A job waits for its announcement, in the order of `at_us`.
local function add_to_backlog(id, job, at_us)
  local queue, tenant = job.queue, job.tenant
  redis.call('ZADD', queued_key(queue), '+inf', id)
  redis.call('ZADD', backlog_key(queue, tenant), at_us, id)
  if redis.call('ZSCORE', turns_key(queue), tenant) then return end
  local used = virtual_time(queue)
  used = math.max(used, tonumber(redis.call('ZSCORE', used_key(queue), tenant) or 0))
  local under_way = tonumber(redis.call('HGET', under_way_key(queue), tenant) or 0)
  redis.call('ZADD', used_key(queue), used, tenant)
  redis.call('ZADD', turns_key(queue), used + under_way, tenant)
end

local function end_turns_if_empty(queue, tenant)
  if redis.call('EXISTS', backlog_key(queue, tenant)) == 0 then
    redis.call('ZREM', turns_key(queue), tenant)
  end
end

-- kombu pops from the right, so LPUSH is the end of the queue and RPUSH its head.
local function announce(id, queue, at_head, now)
  local number = redis.call('HINCRBY', job_key(id), 'announcements', 1)
  redis.call('HSET', job_key(id), 'announced_at_ms', now)
  redis.call('ZADD', queued_key(queue), now, id)
  redis.call(at_head and 'RPUSH' or 'LPUSH', queue, envelope(id, queue, number))
end

local function drop_dead_letter(id)
  redis.call('ZREM', DEAD, id)
  return redis.call('DEL', dead_key(id)) == 1
end

-- Take the message of an announced job back, so that the list names waiting jobs only.
local function take_back(id, queue)
  if redis.call('LLEN', queue) > TAKE_BACK_JOBS then return end -- at its claim it is refused
  local number = tonumber(redis.call('HGET', job_key(id), 'announcements') or 0)
  redis.call('LREM', queue, 1, envelope(id, queue, number))
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

-- Announce waiting jobs while the queue's list has room: each time one of the tenant whose turn it is.
local function announce_next(queue, now)
  local room = tonumber(redis.call('GET', WINDOW) or WINDOW_JOBS) - redis.call('LLEN', queue)
  while room > 0 do
    local tenant = redis.call('ZRANGE', turns_key(queue), 0, 0)[1]
    if not tenant then return end
    local id = redis.call('ZPOPMIN', backlog_key(queue, tenant))[1]
    local job = id and load_job(id)
    if job and job.state == 'queued' then
      room = room - guarded(id, 0, function()
        charge(id, job)
        announce(id, queue, false, now)
        return 1
      end)
    elseif id then
      redis.call('ZREM', queued_key(queue), id) -- its record was removed by hand, or is no such job
    end
    end_turns_if_empty(queue, tenant)
  end
end

-- What waits in all queues and of one tenant: jobs, bytes and tokens of each.
local function load_usage(tenant)
  local fields = { 'jobs', 'bytes', 'tokens', 'jobs:' .. tenant, 'bytes:' .. tenant,
    'tokens:' .. tenant }
  local values = redis.call('HMGET', USAGE, unpack(fields))
  for i = 1, 6 do values[i] = tonumber(values[i] or 0) end
  return { fields = fields, values = values }
end

-- Count a job in or out of what waits; `sign` is 1 or -1.
local function count_usage(usage, num_bytes, num_tokens, sign)
  local amounts, written, empty = { 1, num_bytes, num_tokens }, {}, {}
  for i = 1, 6 do
    local value = usage.values[i] + sign * amounts[(i - 1) % 3 + 1]
    if value == 0 then
      empty[#empty + 1] = usage.fields[i]
    else
      written[#written + 1] = usage.fields[i]
      written[#written + 1] = value
    end
  end
  if #written > 0 then redis.call('HSET', USAGE, unpack(written)) end
  if #empty > 0 then redis.call('HDEL', USAGE, unpack(empty)) end
end

-- The same for a job that is stored.
local function recount(id, job, sign)
  if not job.cost then return end
  count_usage(load_usage(job.tenant), redis.call('HSTRLEN', job_key(id), 'doc'), job.cost, sign)
end

-- A queued job leaves its queue, for a worker or for its end. Answers whether it was announced.
local function leave_queue(id, job)
  local score = redis.call('ZSCORE', queued_key(job.queue), id)
  if not score then return false end
  redis.call('ZREM', queued_key(job.queue), id)
  recount(id, job, -1)
  if tonumber(score) ~= math.huge then return true end
  if redis.call('ZREM', SCHEDULED, id) == 0 then
    redis.call('ZREM', backlog_key(job.queue, job.tenant), id)
    end_turns_if_empty(job.queue, job.tenant)
  end
  return false
end

-- Let jobs wait for their announcement whose time has come; answers how many.
local function announce_due(limit, now)
  local ids = redis.call('ZRANGEBYSCORE', SCHEDULED, '-inf', now, 'LIMIT', 0, limit, 'WITHSCORES')
  for i = 1, #ids, 2 do
    redis.call('ZREM', SCHEDULED, ids[i])
    local job = load_job(ids[i])
    if job and job.state == 'queued' then
      add_to_backlog(ids[i], job, ids[i + 1] * 1000)
      announce_next(job.queue, now)
    end
  end
  return #ids / 2
end

-- Make way for a hash where something else lies, which no batchmill wrote.
local function make_way(key)
  local kind = redis.call('TYPE', key).ok
  if kind ~= 'hash' and kind ~= 'none' then redis.call('DEL', key) end
end

local function add_dead_letter(id, kind, reason, payload, source, now)
  make_way(dead_key(id))
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

-- A job that is retried begins and ends once more, under webhook ids that no receiver has seen.
local function run_suffix(run) return run > 1 and '_run' .. run or '' end

-- `suffix` tells several events of one kind apart; `num_tokens` is '' or the output so far. `job`
-- may be a batch, with `kind` 'batch'.
local function add_event(id, job, name, suffix, num_tokens, now, kind)
  local event_id = 'evt_' .. id .. '_' .. name .. suffix
  local event_type = (kind or 'generation') .. '.' .. name
  make_way(event_key(event_id))
  redis.call('HSET', event_key(event_id), 'id', event_id, 'type', event_type, 'job_id', id,
    'url', job.webhook, 'secret', job.webhook_secret, 'num_tokens', num_tokens,
    'state', 'pending', 'attempts', 0, 'fence', 0, 'created_at_ms', now)
  redis.call('ZADD', OUTBOX, now, event_id)
  return event_id
end

-- An event that still waits when another one says more is dropped: it would be tried for days.
local function supersede_event(event_id)
  if not event_id or redis.pcall('HGET', event_key(event_id), 'state') ~= 'pending' then return end
  -- Not deleted: a deliverer may be about to write its body.
  redis.call('HSET', event_key(event_id), 'state', 'superseded')
  redis.call('PEXPIRE', event_key(event_id), EVENT_TTL_MS)
  redis.call('ZREM', OUTBOX, event_id)
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
  if redis.call('TYPE', batch_key(id)).ok ~= 'hash' then return nil end -- gone, or forged
  local f = redis.call('HMGET', batch_key(id), 'state', 'total', 'completed', 'failed', 'error',
    'is_late', 'deadline_at_ms', 'result_ttl_ms', 'webhook', 'webhook_events', 'webhook_secret')
  if not f[1] then return nil end
  return {
    state = f[1],
    total = tonumber(f[2] or nil),
    num_ended = tonumber(f[3] or 0) + tonumber(f[4] or 0),
    error = f[5],
    is_late = f[6] == '1',
    deadline_at_ms = tonumber(f[7] or nil),
    result_ttl_ms = tonumber(f[8] or 0),
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

-- A job that is retried in time is waited for again; an end that a batch has told of stands.
local function uncount_in_batch(id)
  local batch_id = redis.call('HGET', job_key(id), 'batch')
  local batch = batch_id and load_batch(batch_id)
  if not batch or (batch.state ~= 'validating' and batch.state ~= 'in_progress') then return end
  if redis.call('HDEL', job_key(id), 'batch_counted') == 0 then return end
  redis.call('HINCRBY', batch_key(batch_id), 'failed', -1)
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
-- and the wake-up of waiting clients, in one script. `num_tokens` is what it cost, prompt and output;
-- nil counts the output only.
local function finish(id, job, state, result, error_text, now, num_tokens)
  redis.call('ZREM', LEASES, id)
  local was_announced = job.state == 'queued' and leave_queue(id, job)
  if was_announced then take_back(id, job.queue) end
  redis.call('ZREM', DEADLINES, id)
  settle_charge(id, job, num_tokens or redis.call('STRLEN', tokens_key(id)) / 4)
  redis.call('HSET', job_key(id), 'state', state, 'finished_at_ms', now)
  if result ~= '' then redis.call('HSET', job_key(id), 'result', result) end
  if error_text ~= '' then redis.call('HSET', job_key(id), 'error', error_text) end
  supersede_event(job.output_event)
  if wants_event(job, state) then add_event(id, job, state, run_suffix(job.run), '', now) end
  index_state(id, job.state, state, now)
  redis.call('ZADD', EXPIRING, now + job.result_ttl_ms, expiring_entry(id, state, job))
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
  -- Somebody waits for Celery's result, and who ended the job may have no Celery, or die first.
  if job.celery_result then redis.call('ZADD', CELERY_ENDS, now, id) end
  redis.call('HINCRBY', TOTALS, state, 1)
  redis.call('PUBLISH', channel(id), '{"state":"' .. state .. '"}')
  if was_announced then announce_next(job.queue, now) end
end

local function cancel(id, job, now)
  finish(id, job, 'cancelled', '', error_json('cancelled', 'the job was cancelled'), now)
end

-- At once where it waits; a running one is stopped by its worker, at its next checkpoint.
local function cancel_or_ask(id, job, now)
  if TERMINAL[job.state] then return 'ALREADY_TERMINAL' end
  if job.state == 'in_progress' then
    redis.call('HSET', job_key(id), 'cancel_requested', '1')
    return 'CANCELLING'
  end
  cancel(id, job, now)
  return 'CANCELLED'
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
  index_state(id, job.state, 'queued', now)
  if job.deadline_at_ms then redis.call('ZADD', DEADLINES, job.deadline_at_ms, id) end
  recount(id, job, 1)
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
