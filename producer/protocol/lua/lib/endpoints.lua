-- Endpoints of webhooks: one tenant at one URL, query included. One that was closed, or that only fails, holds up
-- neither the other endpoints of its host nor those of other tenants.
-- @include keys

local STATE_TTL_MS = 48 * 3600 * 1000 -- of an endpoint's or a host's state; longer than the longest wait for an attempt

-- The name of an endpoint. URLs that differ only in the case of the host, a default port, a final dot or a missing path
-- name the same one. `protocol/outbox.py` has the same function.
local function endpoint_of(url, tenant)
  local scheme, authority, rest = string.match(url, '^(%a[%w+.-]*)://([^/?#]*)([^#]*)')
  if not scheme then return tenant .. ' ' .. url end
  scheme, authority = string.lower(scheme), string.lower(authority)
  local default_port = scheme == 'https' and ':443$' or ':80$'
  authority = string.gsub(string.gsub(authority, default_port, ''), '%.(:?)$', '%1')
  authority = string.gsub(authority, '%.(:%d+)$', '%1')
  if string.sub(rest, 1, 1) ~= '/' then rest = '/' .. rest end
  return tenant .. ' ' .. scheme .. '://' .. authority .. rest
end

-- Scheme, host and port of an endpoint. Deliveries to one host share its slots.
local function host_of(endpoint)
  return string.match(endpoint, '^%S+ (%a[%w+.-]*://[^/]*)') or 'unknown'
end

-- A whole number of milliseconds that a hash holds; nil if there is none.
local function read_ms(key, field)
  return tonumber(redis.call('HGET', key, field) or nil)
end

local function set_state(key, ...)
  redis.call('HSET', key, ...)
  redis.call('PEXPIRE', key, STATE_TTL_MS)
end

local function disable_endpoint(endpoint, reason, now)
  redis.call('HSETNX', ENDPOINTS_DISABLED, endpoint, now .. ' ' .. reason)
  redis.call('DEL', endpoint_key(endpoint))
end

-- A success closes the breaker.
local function note_success(endpoint, now)
  redis.call('HDEL', endpoint_key(endpoint), 'failures', 'openings', 'open_until_ms', 'opened_at_ms',
    'failing_since_ms', 'last_error')
  set_state(endpoint_key(endpoint), 'next_at_ms', now)
end

-- Count a failure of the receiver. After `breaker.failures` of them in a row the breaker opens: nothing is sent until
-- the wait is over, then one event at a time, and each further failure doubles the wait. `hold_ms` is the wait that the
-- receiver asked for. Return since when the endpoint has had no success.
local function note_failure(endpoint, reason, breaker, hold_ms, now)
  local key = endpoint_key(endpoint)
  local open_until = read_ms(key, 'open_until_ms')
  local failures = redis.call('HINCRBY', key, 'failures', 1)
  redis.call('HSETNX', key, 'failing_since_ms', now)
  local next_at = math.max(now + hold_ms, open_until or 0)
  -- Not after an attempt that began before the breaker opened.
  if breaker.failures > 0 and failures >= breaker.failures and (open_until or 0) <= now then
    local openings = redis.call('HINCRBY', key, 'openings', 1)
    local wait_ms = math.min(breaker.wait_ms * 2 ^ math.min(openings - 1, 30), breaker.max_wait_ms)
    next_at = math.max(next_at, now + math.floor(wait_ms))
    redis.call('HSETNX', key, 'opened_at_ms', now)
    redis.call('HSET', key, 'open_until_ms', next_at)
  end
  set_state(key, 'next_at_ms', next_at, 'last_error', reason)
  return read_ms(key, 'failing_since_ms') or now
end
