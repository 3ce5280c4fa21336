-- Store a new job and let it wait in its queue.
-- KEYS: none. ARGV: alternating names and values. Required: id, v, model, queue, doc, result_ttl_ms, tenant, cost
-- (tokens that it may take), reserved_bytes (memory that its output may take). Optional: is_adopted ('1': the job came
-- inside a Celery message), max_queue_depth, max_queued_jobs, max_queued_bytes, max_queued_tokens, max_memory_percent,
-- max_outbox_events, max_endpoint_events, deadline_at_ms, ttl_ms, not_before_ms, delay_ms, start_by_ms (until then the
-- job has started, or it expires), message_priority (of a Celery message: 0 is the highest), idempotency_key with
-- fingerprint (or several of the same content, comma-separated: the first is stored), webhook with webhook_events
-- (comma-separated names; without it only the end) and webhook_secret (without it the default one), tags
-- (comma-separated), max_tokens, celery_result ('1'), celery_headers with celery_embed (JSON: place in a Celery
-- workflow, and what follows there), lora (name of its LoRA adapter), steering (name of its steering vector), media
-- (for each picture and sound, in order, the names under which it may be stored, with commas, or '-') with needs (what
-- a worker must be able to do, with spaces), batch with batch_index (place of the line, from 0), fingerprint, custom_id
-- and endpoint; api_key and gateway (JSON), of a job that came by the gateway; traceparent (without it that of its
-- batch), prefix (names of the beginning of its prompt, as of a fingerprint).
-- Reply: {CREATED, id}, {EXISTING, id}, {CONFLICT, id}, {FULL, limit's name, value, limit, bytes that the job needs
-- itself}, {PAUSED, kind, name, JSON} (of the pause that refuses it), {TOO_LATE} (the deadline would pass before the
-- job may run), {NO_ADAPTER, 'unknown' or 'model', model of the adapter, 'lora' or 'steering'}, {NO_MEDIA, place} or
-- {CLOSED, state of its batch ('' = there is none)}.
-- @include adapters, announce, batches, counters, events, fair_share, fingerprint, idempotency, index, keys, media
-- @include pauses, payloads, queue_limits, queues, sealed, server, usage
local US_PER_MESSAGE_PRIORITY = 1e14 -- three years: a lower priority waits behind all that a tenant sent before
local job = {}
for i = 1, #ARGV, 2 do job[ARGV[i]] = ARGV[i + 1] end
-- Redis has accepted an adopted job before, in its message, and no limit on waiting jobs applies to it.
if job.is_adopted then allow_writes_when_full() end
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

-- Names and values of the record, which is written with one command.
local record = {}
local function put(name, value)
  if not value then return end
  record[#record + 1] = name
  record[#record + 1] = value
end
local function put_each(names)
  for _, name in ipairs(names) do put(name, job[name]) end
end

local function put_webhook()
  if not job.webhook then return end
  put_each({ 'webhook', 'webhook_events', 'webhook_secret' })
  if wants_event(job, 'output') then put('output_due_ms', 0) end
end

-- The reply if the line of a batch is stored already or its batch accepts no lines; otherwise nil.
local function batch_refusal()
  local index = job.batch_index
  local known = redis.call('ZRANGEBYSCORE', batch_jobs_key(job.batch), index, index)[1]
  if known then
    local fingerprint = redis.call('HGET', job_key(known), 'fingerprint') -- deleted with the record
    local is_same = not fingerprint or is_same_content(job.fingerprint, fingerprint)
    return { is_same and 'EXISTING' or 'CONFLICT', known }
  end
  local state = redis.call('HGET', batch_key(job.batch), 'state')
  if state ~= 'validating' then return { 'CLOSED', state or '' } end
end

local function put_batch()
  if not job.batch then return end
  put_each({ 'batch', 'custom_id', 'endpoint' })
  put('fingerprint', job.fingerprint and first_fingerprint(job.fingerprint))
  local f = redis.call('HMGET', batch_key(job.batch), 'api_key', 'traceparent')
  put('api_key', f[1])
  put('traceparent', not job.traceparent and f[2])
end

local function write_batch(now)
  if not job.batch then return end
  redis.call('ZADD', batch_jobs_key(job.batch), job.batch_index, id)
  note_line_labels(job.batch, job)
  local idle_at = now + BATCH_IDLE_LIMIT_MS
  local late_at = redis.call('HGET', batch_key(job.batch), 'deadline_at_ms') or idle_at
  redis.call('ZADD', BATCHES_DUE, math.min(tonumber(late_at), idle_at), job.batch)
end

local payload, payload_key = split_reference(job.doc)
local has_payload = payload and is_payload_noted(payload, now_ms())
local lora, steering, no_adapter
if job.lora or job.steering then
  -- A call that is repeated finds its job, or its line of a batch, whatever the adapter's name stands for by now.
  if redis.call('EXISTS', job_key(id)) == 1 then return { 'EXISTING', id } end
  local reply = job.batch and batch_refusal()
  if reply then return reply end
  lora, no_adapter = find_adapter(job, 'lora', ADAPTERS)
  if no_adapter then return no_adapter end
  steering, no_adapter = find_adapter(job, 'steering', STEERING_VECTORS)
  if no_adapter then return no_adapter end
  for _, name in ipairs({ 'prefix', not job.batch and 'fingerprint' or nil }) do
    if job[name] then job[name] = with_adapter(with_adapter(job[name], lora), steering) end
  end
end
local known = key and load_idempotency_entry(job.tenant, key)
if known then return { is_same_content(job.fingerprint, known.fingerprint) and 'EXISTING' or 'CONFLICT', known.id } end
-- The caller chose the id: a call repeated after a lost reply finds its own job.
if redis.call('EXISTS', job_key(id)) == 1 then return { 'EXISTING', id } end
local reply = job.batch and batch_refusal()
if reply then return reply end
local usage, time_us = load_usage(job.tenant, queue), now_us()
local now, reserved_bytes = math.floor(time_us / 1000), tonumber(job.reserved_bytes)
local refusal = not job.is_adopted
  and (reached_limit(queue, job.tenant, job, usage, #job.doc, reserved_bytes, now)
    or reached_outbox_limit(job.webhook, job.tenant, job))
load_pauses(queue, job.tenant)
refusal = refusal or not job.is_adopted and pause_reply(queue, job.tenant)
if refusal then return refusal end
local deadline_at, due_at = earliest_deadline(now), latest_start(now)
if deadline_at and due_at and deadline_at <= due_at then return { 'TOO_LATE' } end

if payload and not has_payload then
  return redis.error_reply('PAYLOADGONE the call came too late, and the object of the job was deleted; submit it again')
end
local media, no_media
if job.media then
  media, no_media = find_media(job.media)
  if not media then return no_media end
  reserved_bytes = reserved_bytes + hold_media(id, media)
end

local start_by = tonumber(job.start_by_ms)
local backlog_at_us = not due_at and time_us + tonumber(job.message_priority or 0) * US_PER_MESSAGE_PRIORITY
put_each({ 'tags', 'api_key', 'gateway', 'traceparent' })
put('lora', lora)
put('steering', steering)
put('media', media)
put('sealed_with', job.needs)
put('prefix', job.prefix and first_fingerprint(job.prefix))
put_webhook()
put_batch()
put('deadline_at_ms', deadline_at)
put('start_by_ms', start_by)
put('idempotency_key', key)
put('celery_result', job.celery_result and '1')
if job.celery_embed then put_each({ 'celery_headers', 'celery_embed' }) end
put('not_before_ms', due_at)
put('backlog_at_us', backlog_at_us)
redis.call('HSET', job_key(id), 'id', id, 'v', job.v, 'model', job.model, 'queue', queue,
  'state', 'queued', 'doc', job.doc, 'enqueued_at_ms', now, 'announced_at_ms', now, 'fence', 0,
  'attempts', 0, 'result_ttl_ms', job.result_ttl_ms, 'tenant', job.tenant, 'cost', job.cost,
  'reserved_bytes', string.format('%.0f', reserved_bytes),
  'max_tokens', job.max_tokens or '', unpack(record))
local piece = split_sealed(job.doc)
if piece then note_seal_key(id, piece.key_id) end
if payload then
  keep_payload(id, payload, nil, now)
  note_seal_key(id, READS_PAYLOADS)
  if payload_key ~= '-' then note_seal_key(id, payload_key) end
end
if media then note_media_keys(id, media) end
index_job(id, 'queued', job, now)
write_batch(now)
local expires_at = math.min(deadline_at or math.huge, start_by or math.huge)
if expires_at < math.huge then redis.call('ZADD', DEADLINES, expires_at, id) end
if key then
  redis.call('HSET', idempotency_key(job.tenant, key), 'id', id, 'fingerprint', first_fingerprint(job.fingerprint))
  keep_idempotency_entry(job, UNFINISHED_KEY_TTL_MS)
end
register_queue(queue, now)
increment(TOTALS, 'submitted', 1)

local queued = { queue = queue, tenant = job.tenant, cost = tonumber(job.cost), reserved_bytes = reserved_bytes,
  num_bytes = #job.doc }
count_stored_job(id, queued, 1)
count_reservation(id, queued, 1)
if due_at then
  redis.call('ZADD', queued_key(queue), '+inf', id)
  redis.call('ZADD', SCHEDULED, due_at, id)
else
  count_queue_tokens(id, queued, 1)
  enter_backlog(id, queued, backlog_at_us)
  fill_window(queue, now)
end
write_usage()
return { 'CREATED', id }
