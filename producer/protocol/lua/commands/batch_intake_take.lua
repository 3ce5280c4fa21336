-- Take a batch whose lines are to be read from their file, or keep it. Another gateway takes it if this one dies.
-- KEYS: none. ARGV: lease_ms, batch to keep ('' = take one that is due).
-- Reply: the batch, or nil if none is due.
-- @include keys, server
allow_writes_when_full()
local now, id = now_ms(), ARGV[2]
if id == '' then id = redis.call('ZRANGEBYSCORE', BATCH_INTAKES, '-inf', now, 'LIMIT', 0, 1)[1] end
if id then redis.call('ZADD', BATCH_INTAKES, 'XX', now + tonumber(ARGV[1]), id) end
return id
