-- Record the outcome of a delivery attempt: the event is settled, or becomes due again.
-- KEYS: none. ARGV: event id, fence, outcome (delivered, retry, postponed, exhausted, disabled, unusable_event),
-- retry delay_ms, HTTP status ('' = none), reason, duration_ms of the attempt, '1' if the receiver is at fault.
-- Reply: OK or FENCED.
-- @include events, keys, server
allow_writes_when_full()
local MAX_LOG_LINES = 20 -- of an event's log, one per attempt
local MAX_FAILING_MS = 120 * 3600 * 1000 -- an endpoint without a success for this long is disabled
local FAILING_TTL_MS = 48 * 3600 * 1000 -- longer than the longest wait between two attempts
local id, fence, outcome, delay_ms = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local status, reason, key, now = ARGV[5], ARGV[6], event_key(ARGV[1]), now_ms()
local f = redis.call('HMGET', key, 'state', 'fence', 'url', 'log')
if f[1] ~= 'pending' or f[2] ~= fence then return 'FENCED' end

if outcome == 'postponed' then -- nothing was sent: the attempt that the claim counted does not count
  redis.call('HINCRBY', key, 'attempts', -1)
  -- So that a call repeated after a lost reply does not subtract a second attempt.
  redis.call('HINCRBY', key, 'fence', 1)
  redis.call('ZADD', OUTBOX, now + delay_ms, id)
  return 'OK'
end

local function log_attempt()
  local lines = {}
  for line in string.gmatch(f[4] or '', '[^\n]+') do lines[#lines + 1] = line end
  lines[#lines + 1] = now .. ',' .. status .. ',' .. reason .. ',' .. ARGV[7]
  if #lines > MAX_LOG_LINES then table.remove(lines, 1) end
  redis.call('HSET', key, 'log', table.concat(lines, '\n'))
end

-- Record a failure of the receiver. Return whether it must be disabled, because it had no success for too long.
local function has_failed_too_long(endpoint)
  local since = tonumber(redis.call('GET', failing_key(endpoint)) or now)
  redis.call('SET', failing_key(endpoint), since, 'PX', FAILING_TTL_MS)
  return now - since >= MAX_FAILING_MS
end

log_attempt()
local endpoint = endpoint_of(f[3])
if outcome == 'delivered' then
  redis.call('DEL', failing_key(endpoint))
elseif status == '410' then
  disable_endpoint(endpoint, 'gone', now)
elseif ARGV[8] == '1' and has_failed_too_long(endpoint) then
  disable_endpoint(endpoint, 'no_success_for_120_hours', now)
  outcome = 'disabled'
end
if outcome == 'retry' then
  redis.call('ZADD', OUTBOX, now + delay_ms, id)
  redis.call('HSET', key, 'last_status', status, 'last_error', reason)
  -- So that a call repeated after a lost reply does not write a second line into the log.
  redis.call('HINCRBY', key, 'fence', 1)
  return 'OK'
end
settle_event(id, f[3], outcome, status, reason, now)
return 'OK'
