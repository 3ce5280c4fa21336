-- Dead letters, webhook events and the endpoints that they go to.

local function drop_dead_letter(id)
  redis.call('ZREM', DEAD, id)
  return redis.call('DEL', dead_key(id)) == 1
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
