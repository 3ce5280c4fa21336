-- Change a registered receiver of webhooks, and its secrets.
-- KEYS: none. ARGV: tenant, id, the receiver (JSON), the value of its secrets, which may be sealed.
-- Reply: OK.
-- @include foreign_keys, keys
local receivers = receivers_key(ARGV[1])
delete_unless('hash', receivers)
delete_unless('hash', RECEIVER_SECRETS)
redis.call('HSET', receivers, ARGV[2], ARGV[3])
redis.call('HSET', RECEIVER_SECRETS, ARGV[2], ARGV[4])
return redis.status_reply('OK')
