-- Put a settled event back into the outbox, with the same id and body.
-- KEYS: none. ARGV: event id.
-- Reply: OK, PENDING (it is in the outbox already), DISABLED (its endpoint is) or UNKNOWN.
-- @include dead_letters, events, keys, outbox, server
allow_writes_when_full()
local id, key = ARGV[1], event_key(ARGV[1])
local f = redis.call('HMGET', key, 'state', 'created_at_ms')
local state, now = f[1], now_ms()
if not state then return 'UNKNOWN' end
if state == 'pending' then return 'PENDING' end
local endpoint = endpoint_of_event(id)
if redis.call('HEXISTS', ENDPOINTS_DISABLED, endpoint) == 1 then return 'DISABLED' end
redis.call('HSET', key, 'state', 'pending', 'attempts', 0)
redis.call('HDEL', key, 'replay')
redis.call('PERSIST', key)
redis.call('ZREM', SETTLED_EVENTS, id)
queue_event('live', id, endpoint, now, tonumber(f[2] or nil) or now)
delete_dead_letter(id)
return 'OK'
