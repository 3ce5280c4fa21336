-- Forget objects that have been deleted.
-- KEYS: none. ARGV: names...
-- Reply: OK.
-- @include keys, server
allow_writes_when_full()
for i = 1, #ARGV do redis.call('ZREM', PAYLOADS_UNUSED, ARGV[i]) end
return redis.status_reply('OK')
