-- ARGV: id, version, model, queue, document, webhook ('' = none), idempotency key ('' = none),
-- fingerprint, deadline_at_ms ('' = none), ttl_ms ('' = none), result_ttl_ms, max queue depth
-- (0 = no limit), '1' to announce, webhook events with commas ('' = those of the end), name of the
-- webhook secret ('' = the default one).
-- Answers {CREATED, id}, {EXISTING, id}, {CONFLICT, id} or {FULL, depth}.
local id, version, model, queue, document = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local webhook, key, fingerprint = ARGV[6], ARGV[7], ARGV[8]
local deadline_at_ms, ttl_ms = tonumber(ARGV[9]), tonumber(ARGV[10])
local result_ttl_ms, max_depth, announced = ARGV[11], tonumber(ARGV[12]), ARGV[13] == '1'

if key ~= '' then
  local known = redis.call('HMGET', idempotency_key(key), 'id', 'fingerprint')
  if known[1] then
    if known[2] == fingerprint then return { 'EXISTING', known[1] } end
    return { 'CONFLICT', known[1] }
  end
end
-- The id is the caller's: a call repeated after a lost answer finds its own job.
if redis.call('EXISTS', job_key(id)) == 1 then return { 'EXISTING', id } end
if max_depth > 0 then
  local depth = redis.call('ZCARD', queued_key(queue))
  if depth >= max_depth then return { 'FULL', tostring(depth) } end
end

local now = now_ms()
if ttl_ms then deadline_at_ms = math.min(deadline_at_ms or now + ttl_ms, now + ttl_ms) end
redis.call('HSET', job_key(id), 'id', id, 'v', version, 'model', model, 'queue', queue,
  'state', 'queued', 'doc', document, 'enqueued_at_ms', now, 'announced_at_ms', now, 'fence', 0,
  'attempts', 0, 'result_ttl_ms', result_ttl_ms)
if webhook ~= '' then
  local events, secret = ARGV[14], ARGV[15]
  redis.call('HSET', job_key(id), 'webhook', webhook)
  if secret ~= '' then redis.call('HSET', job_key(id), 'webhook_secret', secret) end
  if events ~= '' then
    redis.call('HSET', job_key(id), 'webhook_events', events)
    if wants_event({ webhook = webhook, webhook_events = events }, 'output') then
      redis.call('HSET', job_key(id), 'output_due_ms', 0)
    end
  end
end
if deadline_at_ms then
  redis.call('HSET', job_key(id), 'deadline_at_ms', deadline_at_ms)
  redis.call('ZADD', DEADLINES, deadline_at_ms, id)
end
if key ~= '' then
  -- No TTL before the job has ended: a job that waits for days must still be found by its key.
  redis.call('HSET', job_key(id), 'idempotency_key', key)
  redis.call('HSET', idempotency_key(key), 'id', id, 'fingerprint', fingerprint)
end
redis.call('SADD', QUEUES, queue)
redis.call('HINCRBY', TOTALS, 'submitted', 1)
if announced then
  announce(id, queue, false, now)
else
  redis.call('ZADD', queued_key(queue), now, id)
end
return { 'CREATED', id }
