-- ARGV: event id, fence, outcome (delivered, retry, postponed, exhausted, disabled), retry
-- delay_ms, HTTP status ('' = none), reason, duration_ms of the attempt, '1' where a failure is the
-- receiver's and not ours.
-- Answers OK or FENCED.
write_even_when_full()
local id, fence, outcome, delay_ms = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local status, reason, key, now = ARGV[5], ARGV[6], event_key(ARGV[1]), now_ms()
local f = redis.call('HMGET', key, 'state', 'fence', 'url', 'log')
if f[1] ~= 'pending' or f[2] ~= fence then return 'FENCED' end

if outcome == 'postponed' then -- nothing was sent: the claim's attempt does not count
  redis.call('HINCRBY', key, 'attempts', -1)
  -- So that a call repeated after a lost answer takes off no second one.
  redis.call('HINCRBY', key, 'fence', 1)
  redis.call('ZADD', OUTBOX, now + delay_ms, id)
  return 'OK'
end

local function log_attempt()
  local lines = {}
  for line in string.gmatch(f[4] or '', '[^\n]+') do lines[#lines + 1] = line end
  lines[#lines + 1] = now .. ',' .. status .. ',' .. reason .. ',' .. ARGV[7]
  if #lines > ATTEMPTS_KEPT then table.remove(lines, 1) end
  redis.call('HSET', key, 'log', table.concat(lines, '\n'))
end

-- Whether the receiver has had no success for so long that it is disabled.
local function is_patience_over(endpoint)
  local since = tonumber(redis.call('GET', failing_key(endpoint)) or now)
  redis.call('SET', failing_key(endpoint), since, 'PX', FAILING_TTL_MS)
  return now - since >= ENDPOINT_PATIENCE_MS
end

log_attempt()
local endpoint = endpoint_of(f[3])
if outcome == 'delivered' then
  redis.call('DEL', failing_key(endpoint))
elseif status == '410' then
  disable_endpoint(endpoint, 'gone', now)
elseif ARGV[8] == '1' and is_patience_over(endpoint) then
  disable_endpoint(endpoint, 'no_success_for_120_hours', now)
  outcome = 'disabled'
end
if outcome == 'retry' then
  redis.call('ZADD', OUTBOX, now + delay_ms, id)
  redis.call('HSET', key, 'last_status', status, 'last_error', reason)
  -- So that a call repeated after a lost answer writes no second line into the log.
  redis.call('HINCRBY', key, 'fence', 1)
  return 'OK'
end
settle_event(id, f[3], outcome, status, reason, now)
return 'OK'
