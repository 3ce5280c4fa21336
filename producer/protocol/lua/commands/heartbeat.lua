-- Write a worker's heartbeat, also if Redis is full: a worker whose jobs continue must not look dead.
-- KEYS: none. ARGV: name, heartbeat, time to live in seconds.
-- Reply: OK.
-- @include keys, server
allow_writes_when_full()
redis.call('SET', worker_key(ARGV[1]), ARGV[2], 'EX', ARGV[3])
redis.call('SADD', WORKERS, ARGV[1])
return 'OK'
