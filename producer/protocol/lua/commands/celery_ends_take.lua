-- Take ended Celery tasks whose ends have not been reported to Celery, oldest first. Each is taken by one caller, which
-- loses it after the lease, or when its session is lost.
-- KEYS: none. ARGV: limit, grace_ms (since the end), lease_ms, the caller's session.
-- Reply: a list of ids.
-- @include keys, server
allow_writes_when_full()
local now = now_ms()
local ids = redis.call('ZRANGEBYSCORE', CELERY_ENDS, '-inf', now - ARGV[2], 'LIMIT', 0, ARGV[1])
for _, id in ipairs(ids) do
  redis.call('ZADD', CELERY_ENDS, now + ARGV[3], id)
  redis.call('HSET', CELERY_END_TAKERS, id, ARGV[4])
end
return ids
