-- Record the outcome of a delivery attempt: the event is settled, or becomes due again.
-- KEYS: none. ARGV: event id, fence, outcome (delivered, retry, exhausted, disabled, refused, unusable_event), retry
-- delay_ms, HTTP status ('' = none), reason, duration_ms of the attempt ('' = none was made), '1' if the receiver is at
-- fault, hold_ms (the wait before the endpoint's next attempt that the receiver asked for), then of the breaker:
-- failures after which it opens (0 = never), the first wait_ms, and the longest.
-- Reply: OK or FENCED.
-- @include endpoints, events, keys, outbox, record, server
allow_writes_when_full()
local MAX_LOG_LINES = 20 -- of an event's log, one per attempt
local MAX_FAILING_MS = 120 * 3600 * 1000 -- an endpoint without a success for this long is disabled
local SMOOTHING = 0.3 -- weight of the newest duration of a host
local id, fence, outcome, delay_ms = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local status, reason, duration_ms = ARGV[5], ARGV[6], tonumber(ARGV[7])
local breaker = { failures = tonumber(ARGV[10]), wait_ms = tonumber(ARGV[11]), max_wait_ms = tonumber(ARGV[12]) }
local key, now = event_key(id), now_ms()
local f = redis.call('HMGET', key, 'state', 'fence', 'url', 'log', 'replay', 'nonce')
if f[1] ~= 'pending' or fence_text(f[2], f[6]) ~= fence then return 'FENCED' end
local endpoint = endpoint_of_event(id)
local host = host_of(endpoint)

local function log_attempt()
  local lines = {}
  for line in string.gmatch(f[4] or '', '[^\n]+') do lines[#lines + 1] = line end
  lines[#lines + 1] = now .. ',' .. status .. ',' .. reason .. ',' .. (duration_ms or 0)
  if #lines > MAX_LOG_LINES then table.remove(lines, 1) end
  redis.call('HSET', key, 'log', table.concat(lines, '\n'))
end

-- Free the slot, and measure how long the host takes.
local function note_host()
  free_claim(id, endpoint)
  local usual_ms = read_ms(host_key(host), 'duration_ms')
  local measured_ms = duration_ms or usual_ms
  if measured_ms then
    usual_ms = usual_ms or measured_ms
    measured_ms = math.floor(usual_ms + SMOOTHING * (measured_ms - usual_ms) + 0.5)
    set_state(host_key(host), 'next_at_ms', now, 'duration_ms', measured_ms)
  else
    set_state(host_key(host), 'next_at_ms', now)
  end
end

-- Note the outcome at the endpoint, which it may close.
local function note_endpoint()
  if outcome == 'delivered' then
    note_success(endpoint, now)
  elseif status == '410' then
    disable_endpoint(endpoint, 'gone', now)
  elseif ARGV[8] == '1' then
    local since = note_failure(endpoint, reason, breaker, tonumber(ARGV[9]), now)
    if now - since >= MAX_FAILING_MS then
      disable_endpoint(endpoint, 'no_success_for_120_hours', now)
      outcome = 'disabled'
    end
  else
    local open_until = read_ms(endpoint_key(endpoint), 'open_until_ms') or 0
    set_state(endpoint_key(endpoint), 'next_at_ms', math.max(now, open_until))
  end
end

log_attempt()
with_endpoint_keys(endpoint, function()
  note_host()
  note_endpoint()
end)
if outcome == 'retry' then
  redis.call('HSET', key, 'last_status', status, 'last_error', reason)
  -- So that a call repeated after a lost reply does not write a second line into the log.
  redis.call('HINCRBY', key, 'fence', 1)
  with_endpoint_keys(endpoint, function()
    redis.call('ZADD', due_events_key(f[5] and 'replay' or 'live', endpoint), now + delay_ms, id)
    schedule_both_classes(endpoint)
  end)
  return 'OK'
end
settle_event(id, f[3] or '', endpoint, outcome, status, reason, now)
return 'OK'
