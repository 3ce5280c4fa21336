-- ARGV: event id, body. Stores the body unless the event has one. Answers the stored one.
write_even_when_full()
local key = event_key(ARGV[1])
if redis.call('EXISTS', key) == 0 then return ARGV[2] end -- deleted by hand: nothing to keep it in
redis.call('HSETNX', key, 'body', ARGV[2])
return redis.call('HGET', key, 'body')
