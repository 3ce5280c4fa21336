-- Note objects that are about to be written, so that those that no record comes to refer to are found and deleted.
-- KEYS: none. ARGV: names...
-- Reply: OK.
-- @include keys, payloads, server
allow_writes_when_full() -- jobs in progress must end
local at = now_ms() + PAYLOAD_CHECK_MS
for i = 1, #ARGV do redis.call('ZADD', PAYLOADS, 'NX', at, ARGV[i]) end
return redis.status_reply('OK')
