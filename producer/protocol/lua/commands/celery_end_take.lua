-- Take one ended Celery task, to report its end to Celery.
-- KEYS: none. ARGV: id, lease_ms, the caller's session.
-- Reply: TAKEN, HELD (another process reports it, or has done so) or UNKNOWN (the job does not exist).
-- @include keys, server
allow_writes_when_full()
local now = now_ms()
local at = tonumber(redis.call('ZSCORE', CELERY_ENDS, ARGV[1]) or nil)
if at and at <= now then
  redis.call('ZADD', CELERY_ENDS, now + ARGV[2], ARGV[1])
  redis.call('HSET', CELERY_END_TAKERS, ARGV[1], ARGV[3])
  return 'TAKEN'
end
return redis.call('EXISTS', job_key(ARGV[1])) == 1 and 'HELD' or 'UNKNOWN'
