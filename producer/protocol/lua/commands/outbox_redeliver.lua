-- Put a settled event back into the outbox, with the same id and body.
-- KEYS: none. ARGV: event id.
-- Reply: OK, PENDING (it is in the outbox already), DISABLED (its endpoint is) or UNKNOWN.
-- @include dead_letters, events, keys, server
allow_writes_when_full()
local id, key = ARGV[1], event_key(ARGV[1])
local f = redis.call('HMGET', key, 'state', 'url')
local state = f[1]
if not state then return 'UNKNOWN' end
if state == 'pending' then return 'PENDING' end
if redis.call('HEXISTS', ENDPOINTS_DISABLED, endpoint_of(f[2])) == 1 then return 'DISABLED' end
redis.call('HSET', key, 'state', 'pending', 'attempts', 0)
redis.call('PERSIST', key)
redis.call('ZADD', OUTBOX, now_ms(), id)
delete_dead_letter(id)
return 'OK'
