-- Claim webhook events that are due. Their due time moves to the end of the lease, so an event whose deliverer died
-- becomes due again by itself. Events for a disabled endpoint are given up instead, without an attempt.
-- KEYS: none. ARGV: owner, limit, lease_ms.
-- Reply: a list of {event id, type, job id, url, attempt, fence, created_at_ms, body ('' = not rendered yet), secret
-- name ('' = the default one), output tokens ('' = not an `output` event)}.
-- @include dead_letters, events, keys, server
allow_writes_when_full()
local owner, limit, lease_ms, now = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), now_ms()
local claimed = {}

local function claim_event(id)
  local key = event_key(id)
  local f = redis.call('HMGET', key, 'type', 'job_id', 'url', 'created_at_ms', 'body', 'secret',
    'num_tokens')
  if not f[1] then
    redis.call('ZREM', OUTBOX, id)
  elseif redis.call('HEXISTS', ENDPOINTS_DISABLED, endpoint_of(f[3])) == 1 then
    settle_event(id, f[3], 'disabled', '', 'endpoint_disabled', now)
  else
    if not (f[2] and f[3] and tonumber(f[4])) then error('a field is missing', 0) end
    redis.call('ZADD', OUTBOX, now + lease_ms, id)
    local attempt = redis.call('HINCRBY', key, 'attempts', 1)
    local fence = redis.call('HINCRBY', key, 'fence', 1)
    redis.call('HSET', key, 'owner', owner, 'attempted_at_ms', now)
    claimed[#claimed + 1] = {
      id, f[1], f[2], f[3], attempt, fence, tonumber(f[4]), f[5] or '', f[6] or '', f[7] or '',
    }
  end
end

for _, id in ipairs(redis.call('ZRANGEBYSCORE', OUTBOX, '-inf', now, 'LIMIT', 0, limit)) do
  if not pcall(claim_event, id) then -- data that batchmill did not write must not hold up the others
    redis.call('ZREM', OUTBOX, id)
    add_dead_letter(id, 'webhook', 'unusable_event', '', '', now)
    if redis.call('PTTL', event_key(id)) == -1 then
      redis.call('PEXPIRE', event_key(id), EVENT_TTL_MS)
    end
  end
end
return claimed
