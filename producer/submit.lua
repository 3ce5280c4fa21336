-- ARGV: names and values in turn; a name that is not given is nothing asked for. Required: id, v, model,
-- queue, doc, result_ttl_ms. Optional: announce ('1'; else the job is in a worker's hands already),
-- max_queue_depth, deadline_at_ms, ttl_ms, idempotency_key with fingerprint, webhook with
-- webhook_events (names with commas; else those of the end) and webhook_secret (else the default),
-- batch with batch_index (place of its line, from 0), fingerprint, custom_id and endpoint.
-- Answers {CREATED, id}, {EXISTING, id}, {CONFLICT, id}, {FULL, depth} or {CLOSED, state of its
-- batch, '' where there is none}.
local job = {}
for i = 1, #ARGV, 2 do job[ARGV[i]] = ARGV[i + 1] end
local id, queue, key = job.id, job.queue, job.idempotency_key

local function is_full()
  if not job.max_queue_depth then return false end
  local depth = redis.call('ZCARD', queued_key(queue))
  return depth >= tonumber(job.max_queue_depth), tostring(depth)
end

local function write_deadline(now)
  local at, ttl_ms = tonumber(job.deadline_at_ms), tonumber(job.ttl_ms)
  if ttl_ms then at = math.min(at or now + ttl_ms, now + ttl_ms) end
  if not at then return end
  redis.call('HSET', job_key(id), 'deadline_at_ms', at)
  redis.call('ZADD', DEADLINES, at, id)
end

local function write_webhook()
  if not job.webhook then return end
  for _, name in ipairs({ 'webhook', 'webhook_events', 'webhook_secret' }) do
    if job[name] then redis.call('HSET', job_key(id), name, job[name]) end
  end
  if wants_event(job, 'output') then redis.call('HSET', job_key(id), 'output_due_ms', 0) end
end

-- The answer where a line of a batch is there already, or its batch takes none.
local function answer_of_batch()
  local index = job.batch_index
  local known = redis.call('ZRANGEBYSCORE', batch_jobs_key(job.batch), index, index)[1]
  if known then
    local fingerprint = redis.call('HGET', job_key(known), 'fingerprint') -- gone with the record
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
  local deadline = redis.call('HGET', batch_key(job.batch), 'deadline_at_ms')
  local due = now + BATCH_PATIENCE_MS
  redis.call('ZADD', BATCHES_DUE, math.min(tonumber(deadline or due), due), job.batch)
end

if key then
  local known = redis.call('HMGET', idempotency_key(key), 'id', 'fingerprint')
  if known[1] then return { known[2] == job.fingerprint and 'EXISTING' or 'CONFLICT', known[1] } end
end
-- The id is the caller's: a call repeated after a lost answer finds its own job.
if redis.call('EXISTS', job_key(id)) == 1 then return { 'EXISTING', id } end
local answer = job.batch and answer_of_batch()
if answer then return answer end
local full, depth = is_full()
if full then return { 'FULL', depth } end

local now = now_ms()
redis.call('HSET', job_key(id), 'id', id, 'v', job.v, 'model', job.model, 'queue', queue,
  'state', 'queued', 'doc', job.doc, 'enqueued_at_ms', now, 'announced_at_ms', now, 'fence', 0,
  'attempts', 0, 'result_ttl_ms', job.result_ttl_ms)
write_webhook()
write_deadline(now)
write_batch(now)
if key then
  -- No TTL before the job has ended: a job that waits for days must still be found by its key.
  redis.call('HSET', job_key(id), 'idempotency_key', key)
  redis.call('HSET', idempotency_key(key), 'id', id, 'fingerprint', job.fingerprint)
end
redis.call('SADD', QUEUES, queue)
redis.call('HINCRBY', TOTALS, 'submitted', 1)
if job.announce then
  announce(id, queue, false, now)
else
  redis.call('ZADD', queued_key(queue), now, id)
end
return { 'CREATED', id }
