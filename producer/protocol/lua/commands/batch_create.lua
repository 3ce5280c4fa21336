-- Store a new batch.
-- KEYS: none. ARGV: alternating names and values. Required: id, fingerprint, metadata (JSON), result_ttl_ms.
-- Optional: ttl_ms, webhook with webhook_events and webhook_secret, as for a job; tenant, api_key and gateway (JSON),
-- of a batch that came by the gateway, with intake ('1': a gateway reads its lines from a file); traceparent.
-- Reply: {CREATED or EXISTING, id, deadline_at_ms ('' = none)} or {CONFLICT, id, ''}.
-- @include batches, fingerprint, keys, server
local batch = {}
for i = 1, #ARGV, 2 do batch[ARGV[i]] = ARGV[i + 1] end
local key = batch_key(batch.id)
local known = redis.call('HMGET', key, 'fingerprint', 'deadline_at_ms')
if known[1] then
  if not is_same_content(batch.fingerprint, known[1]) then return { 'CONFLICT', batch.id, '' } end
  return { 'EXISTING', batch.id, known[2] or '' }
end

batch.fingerprint = first_fingerprint(batch.fingerprint)
local now = now_ms()
local deadline_at_ms = batch.ttl_ms and now + tonumber(batch.ttl_ms)
redis.call('HSET', key, 'id', batch.id, 'state', 'validating', 'completed', 0, 'failed', 0,
  'created_at_ms', now)
for _, name in ipairs({ 'fingerprint', 'metadata', 'result_ttl_ms', 'webhook', 'webhook_events',
  'webhook_secret', 'tenant', 'api_key', 'gateway', 'traceparent' }) do
  if batch[name] then redis.call('HSET', key, name, batch[name]) end
end
if deadline_at_ms then redis.call('HSET', key, 'deadline_at_ms', deadline_at_ms) end
redis.call('ZADD', BATCHES, now, batch.id)
if batch.intake then redis.call('ZADD', BATCH_INTAKES, now, batch.id) end
local due = now + BATCH_IDLE_LIMIT_MS
redis.call('ZADD', BATCHES_DUE, math.min(deadline_at_ms or due, due), batch.id)
return { 'CREATED', batch.id, deadline_at_ms or '' }
