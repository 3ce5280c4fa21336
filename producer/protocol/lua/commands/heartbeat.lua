-- Write a worker's heartbeat, also if Redis is full: a worker whose jobs continue must not look dead.
-- KEYS: none. ARGV: name, heartbeat, time to live in seconds, session, milliseconds after which the session is
-- silent, then the queues that the worker serves.
-- Reply: the number of the session's connections that Redis sees.
-- @include keys, server, sessions
allow_writes_when_full()
local name, heartbeat, ttl_s, session, timeout_ms = unpack(ARGV)
redis.call('SET', worker_key(name), heartbeat, 'EX', ttl_s)
redis.call('SADD', WORKERS, name)
for i = 6, #ARGV do redis.call('ZADD', SERVED, now_ms(), ARGV[i]) end
if session == '' then return 0 end
return note_session(session, now_ms() + timeout_ms)
