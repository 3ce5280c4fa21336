-- ARGV: event id, fence, outcome (delivered, retry, postponed, exhausted, disabled), retry
-- delay_ms, HTTP status ('' = none), reason.
-- Answers OK or FENCED.
write_even_when_full()
local id, fence, outcome, delay_ms = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local status, reason, key, now = ARGV[5], ARGV[6], event_key(ARGV[1]), now_ms()
local f = redis.call('HMGET', key, 'state', 'fence', 'url')
if f[1] ~= 'pending' or f[2] ~= fence then return 'FENCED' end

if outcome == 'postponed' then -- nothing was sent: the claim's attempt does not count
  redis.call('HINCRBY', key, 'attempts', -1)
  -- So that a call repeated after a lost answer takes off no second one.
  redis.call('HINCRBY', key, 'fence', 1)
  redis.call('ZADD', OUTBOX, now + delay_ms, id)
  return 'OK'
end
if outcome == 'retry' then
  redis.call('ZADD', OUTBOX, now + delay_ms, id)
  redis.call('HSET', key, 'last_status', status, 'last_error', reason)
  return 'OK'
end
redis.call('ZREM', OUTBOX, id)
redis.call('HSET', key, 'state', outcome, 'settled_at_ms', now, 'last_status', status,
  'last_error', reason)
redis.call('PEXPIRE', key, EVENT_TTL_MS)
redis.call('HINCRBY', TOTALS, 'webhook_' .. outcome, 1)
if outcome ~= 'delivered' then add_dead_letter(id, 'webhook', outcome, reason, f[3], now) end
return 'OK'
