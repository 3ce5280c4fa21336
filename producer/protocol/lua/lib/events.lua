-- Webhook events: written, superseded, settled.
-- @include counters, dead_letters, endpoints, foreign_keys, keys, outbox, record

local EVENT_TTL_MS = 8 * 24 * 3600 * 1000
local OUTPUT_EVENT_INTERVAL_MS = 5000 -- between two `output` events of a job, at least

-- Whether the webhook of a job or batch wants the event of this name. Without a filter it wants only the end.
local function wants_event(job, name)
  if not job.webhook then return false end
  if not job.webhook_events then return TERMINAL[name] == true end
  return string.find(',' .. job.webhook_events .. ',', ',' .. name .. ',', 1, true) ~= nil
end

-- A retried job starts and ends again, under webhook ids that no receiver has seen.
local function run_suffix(run) return run > 1 and '_run' .. run or '' end

-- `suffix` distinguishes several events of one name; `num_tokens` is '' or the length of the output so far. `job` may
-- be a batch, with `kind` 'batch'.
-- @rare
local function add_event(id, job, name, suffix, num_tokens, now, kind)
  local event_id = 'evt_' .. id .. '_' .. name .. suffix
  local event_type = (kind or 'generation') .. '.' .. name
  delete_unless('hash', event_key(event_id))
  redis.call('HSET', event_key(event_id), 'id', event_id, 'type', event_type, 'job_id', id,
    'url', job.webhook, 'secret', job.webhook_secret, 'num_tokens', num_tokens,
    'tenant', job.tenant or DEFAULT_TENANT, 'state', 'pending', 'attempts', 0, 'fence', 0,
    'created_at_ms', now)
  if job.traceparent then redis.call('HSET', event_key(event_id), 'traceparent', job.traceparent) end
  queue_event('live', event_id, endpoint_of(job.webhook, job.tenant or DEFAULT_TENANT), now, now)
  return event_id
end

-- At most one `output` event per job is pending, so a receiver that is down costs one event per job.
-- @rare
local function add_output_event(id, num_tokens, now)
  local job = load_job(id)
  local reported = tonumber(redis.call('HGET', job_key(id), 'output_told') or 0)
  if not job.webhook or num_tokens <= reported then return end
  if job.output_event
    and redis.pcall('HGET', event_key(job.output_event), 'state') == 'pending' then return end
  local number = redis.call('HINCRBY', job_key(id), 'output_events', 1)
  local event_id = add_event(id, job, 'output', '_' .. number, num_tokens, now)
  redis.call('HSET', job_key(id), 'output_event', event_id, 'output_told', num_tokens,
    'output_due_ms', now + OUTPUT_EVENT_INTERVAL_MS)
end

-- The endpoint of a stored event, which may be forged.
local function endpoint_of_event(event_id)
  local f = redis.call('HMGET', event_key(event_id), 'url', 'tenant')
  return endpoint_of(f[1] or '', f[2] or DEFAULT_TENANT)
end

-- Drop a pending event once a later one says more: otherwise it could be retried for days.
-- @rare
local function supersede_event(event_id)
  if not event_id or redis.pcall('HGET', event_key(event_id), 'state') ~= 'pending' then return end
  -- Not deleted: a deliverer may be about to write its body.
  redis.call('HSET', event_key(event_id), 'state', 'superseded')
  redis.call('PEXPIRE', event_key(event_id), EVENT_TTL_MS)
  unqueue_events({ event_id }, endpoint_of_event(event_id))
end

-- End an event's delivery, successful or not.
local function settle_event(id, url, endpoint, outcome, status, reason, now)
  unqueue_events({ id }, endpoint)
  local created_at = tonumber(redis.call('HGET', event_key(id), 'created_at_ms') or nil) or now
  redis.call('ZADD', SETTLED_EVENTS, created_at, id) -- it may be replayed
  redis.call('HDEL', event_key(id), 'replay')
  redis.call('HSET', event_key(id), 'state', outcome, 'settled_at_ms', now, 'last_status', status,
    'last_error', reason)
  redis.call('PEXPIRE', event_key(id), EVENT_TTL_MS)
  increment(TOTALS, 'webhook_' .. outcome, 1)
  if outcome ~= 'delivered' then add_dead_letter(id, 'webhook', outcome, reason, url, now) end
end

-- Make a dead letter of an event with data that batchmill did not write: it must not hold up the others.
local function bury_event(id, endpoint, now)
  unqueue_events({ id }, endpoint)
  add_dead_letter(id, 'webhook', 'unusable_event', '', '', now)
  if redis.call('PTTL', event_key(id)) == -1 then redis.call('PEXPIRE', event_key(id), EVENT_TTL_MS) end
end
