-- Store the body of an event unless it has one.
-- KEYS: none. ARGV: event id, body.
-- Reply: the stored body.
-- @include keys, server
allow_writes_when_full()
local key = event_key(ARGV[1])
if redis.call('EXISTS', key) == 0 then return ARGV[2] end -- deleted by hand: there is no place to store it
redis.call('HSETNX', key, 'body', ARGV[2])
return redis.call('HGET', key, 'body')
