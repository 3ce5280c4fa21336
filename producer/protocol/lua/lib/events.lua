-- Webhook events in the outbox, and the endpoints that receive them.
-- @include dead_letters, keys, record

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
local function add_event(id, job, name, suffix, num_tokens, now, kind)
  local event_id = 'evt_' .. id .. '_' .. name .. suffix
  local event_type = (kind or 'generation') .. '.' .. name
  delete_unless_hash(event_key(event_id))
  redis.call('HSET', event_key(event_id), 'id', event_id, 'type', event_type, 'job_id', id,
    'url', job.webhook, 'secret', job.webhook_secret, 'num_tokens', num_tokens,
    'state', 'pending', 'attempts', 0, 'fence', 0, 'created_at_ms', now)
  redis.call('ZADD', OUTBOX, now, event_id)
  return event_id
end

-- Drop a pending event once a later one says more: otherwise it could be retried for days.
local function supersede_event(event_id)
  if not event_id or redis.pcall('HGET', event_key(event_id), 'state') ~= 'pending' then return end
  -- Not deleted: a deliverer may be about to write its body.
  redis.call('HSET', event_key(event_id), 'state', 'superseded')
  redis.call('PEXPIRE', event_key(event_id), EVENT_TTL_MS)
  redis.call('ZREM', OUTBOX, event_id)
end

-- The part of a URL that identifies its receiver: scheme, host, port and path, without the query.
local function endpoint_of(url)
  local origin, path = string.match(url, '^(%a[%w+.-]*://[^/?#]*)([^?#]*)')
  if not origin then return url end
  return string.lower(origin) .. (path == '' and '/' or path)
end

local function disable_endpoint(endpoint, reason, now)
  redis.call('HSETNX', ENDPOINTS_DISABLED, endpoint, now .. ' ' .. reason)
  redis.call('DEL', failing_key(endpoint))
end

-- End an event's delivery, successful or not.
local function settle_event(id, url, outcome, status, reason, now)
  redis.call('ZREM', OUTBOX, id)
  redis.call('HSET', event_key(id), 'state', outcome, 'settled_at_ms', now, 'last_status', status,
    'last_error', reason)
  redis.call('PEXPIRE', event_key(id), EVENT_TTL_MS)
  redis.call('HINCRBY', TOTALS, 'webhook_' .. outcome, 1)
  if outcome ~= 'delivered' then add_dead_letter(id, 'webhook', outcome, reason, url, now) end
end
