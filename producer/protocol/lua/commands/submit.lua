-- Store a new job and let it wait in its queue.
-- KEYS: none. ARGV: alternating names and values. Required: id, v, model, queue, doc, result_ttl_ms, tenant, cost
-- (tokens that it may take). Optional: announce ('1'; without it a worker holds the job already), max_queue_depth,
-- max_queued_jobs, max_queued_bytes, max_queued_tokens, deadline_at_ms, ttl_ms, not_before_ms, delay_ms,
-- idempotency_key with fingerprint, webhook with webhook_events (comma-separated names; without it only the end) and
-- webhook_secret (without it the default one), tags (comma-separated), max_tokens, celery_result ('1'),
-- celery_headers with celery_embed (JSON: place in a Celery workflow, and what follows there), batch with batch_index
-- (place of the line, from 0), fingerprint, custom_id and endpoint.
-- Reply: {CREATED, id}, {EXISTING, id}, {CONFLICT, id}, {FULL, limit's name, value, limit}, {TOO_LATE} (the deadline
-- would pass before the job may run) or {CLOSED, state of its batch ('' = there is none)}.
-- @include announce, batches, events, fair_share, index, keys, queue_limits, server, usage
local job = {}
for i = 1, #ARGV, 2 do job[ARGV[i]] = ARGV[i + 1] end
-- A job that came inside a Celery message was accepted by Redis before, and its message has freed its memory.
if not job.announce then allow_writes_when_full() end
local id, queue, key = job.id, job.queue, job.idempotency_key

-- The earlier of the absolute and the relative deadline.
local function earliest_deadline(now)
  local at, ttl_ms = tonumber(job.deadline_at_ms), tonumber(job.ttl_ms)
  if ttl_ms then at = math.min(at or now + ttl_ms, now + ttl_ms) end
  return at
end

-- The later of the two times before which the job must not run; nil if it may run now.
local function latest_start(now)
  local at, delay_ms = tonumber(job.not_before_ms), tonumber(job.delay_ms)
  if delay_ms then at = math.max(at or 0, now + delay_ms) end
  if at and at > now then return at end
end

local function write_webhook()
  if not job.webhook then return end
  for _, name in ipairs({ 'webhook', 'webhook_events', 'webhook_secret' }) do
    if job[name] then redis.call('HSET', job_key(id), name, job[name]) end
  end
  if wants_event(job, 'output') then redis.call('HSET', job_key(id), 'output_due_ms', 0) end
end

-- The reply if the line of a batch is stored already or its batch accepts no lines; otherwise nil.
local function batch_refusal()
  local index = job.batch_index
  local known = redis.call('ZRANGEBYSCORE', batch_jobs_key(job.batch), index, index)[1]
  if known then
    local fingerprint = redis.call('HGET', job_key(known), 'fingerprint') -- deleted with the record
    local is_same = not fingerprint or fingerprint == job.fingerprint
    return { is_same and 'EXISTING' or 'CONFLICT', known }
  end
  local state = redis.call('HGET', batch_key(job.batch), 'state')
  if state ~= 'validating' then return { 'CLOSED', state or '' } end
end

local function write_batch(now)
  if not job.batch then return end
  for _, name in ipairs({ 'batch', 'custom_id', 'endpoint', 'fingerprint' }) do
    if job[name] then redis.call('HSET', job_key(id), name, job[name]) end
  end
  redis.call('ZADD', batch_jobs_key(job.batch), job.batch_index, id)
  local idle_at = now + BATCH_IDLE_LIMIT_MS
  local late_at = redis.call('HGET', batch_key(job.batch), 'deadline_at_ms') or idle_at
  redis.call('ZADD', BATCHES_DUE, math.min(tonumber(late_at), idle_at), job.batch)
end

if key then
  local known = redis.call('HMGET', idempotency_key(key), 'id', 'fingerprint')
  if known[1] then return { known[2] == job.fingerprint and 'EXISTING' or 'CONFLICT', known[1] } end
end
-- The caller chose the id: a call repeated after a lost reply finds its own job.
if redis.call('EXISTS', job_key(id)) == 1 then return { 'EXISTING', id } end
local reply = job.batch and batch_refusal()
if reply then return reply end
local usage = load_usage(job.tenant)
local refusal = job.announce and reached_limit(queue, job.tenant, job, usage)
if refusal then return refusal end
local time_us = now_us()
local now = math.floor(time_us / 1000)
local deadline_at, due_at = earliest_deadline(now), latest_start(now)
if deadline_at and due_at and deadline_at <= due_at then return { 'TOO_LATE' } end

redis.call('HSET', job_key(id), 'id', id, 'v', job.v, 'model', job.model, 'queue', queue,
  'state', 'queued', 'doc', job.doc, 'enqueued_at_ms', now, 'announced_at_ms', now, 'fence', 0,
  'attempts', 0, 'result_ttl_ms', job.result_ttl_ms, 'tenant', job.tenant, 'cost', job.cost,
  'max_tokens', job.max_tokens or '')
if job.tags then redis.call('HSET', job_key(id), 'tags', job.tags) end
index_job(id, 'queued', job, now)
write_webhook()
write_batch(now)
if deadline_at then
  redis.call('HSET', job_key(id), 'deadline_at_ms', deadline_at)
  redis.call('ZADD', DEADLINES, deadline_at, id)
end
if key then
  -- No TTL before the job has ended: a job that waits for days must still be found by its key.
  redis.call('HSET', job_key(id), 'idempotency_key', key)
  redis.call('HSET', idempotency_key(key), 'id', id, 'fingerprint', job.fingerprint)
end
redis.call('SADD', QUEUES, queue)
redis.call('HINCRBY', TOTALS, 'submitted', 1)
if job.celery_result then redis.call('HSET', job_key(id), 'celery_result', '1') end
if job.celery_embed then
  redis.call('HSET', job_key(id), 'celery_headers', job.celery_headers, 'celery_embed', job.celery_embed)
end

local queued = { queue = queue, tenant = job.tenant, cost = tonumber(job.cost) }
count_waiting_job(usage, id, #job.doc, queued.cost, 1)
if due_at then
  redis.call('HSET', job_key(id), 'not_before_ms', due_at)
  redis.call('ZADD', queued_key(queue), '+inf', id)
  redis.call('ZADD', SCHEDULED, due_at, id)
elseif job.announce then
  add_to_backlog(id, queued, time_us)
  fill_window(queue, now)
else
  charge_tenant(id, queued)
  redis.call('ZADD', queued_key(queue), now, id)
end
return { 'CREATED', id }
