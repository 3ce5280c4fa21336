-- ARGV: event id. Puts a settled event back with the same id and body.
-- Answers OK, PENDING (it is waiting already) or UNKNOWN.
write_even_when_full()
local id, key = ARGV[1], event_key(ARGV[1])
local state = redis.call('HGET', key, 'state')
if not state then return 'UNKNOWN' end
if state == 'pending' then return 'PENDING' end
redis.call('HSET', key, 'state', 'pending', 'attempts', 0)
redis.call('PERSIST', key)
redis.call('ZADD', OUTBOX, now_ms(), id)
redis.call('DEL', dead_key(id))
redis.call('ZREM', DEAD, id)
return 'OK'
