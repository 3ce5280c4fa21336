-- Register a receiver of webhooks with its secrets, unless its tenant has as many as it may have.
-- KEYS: none. ARGV: tenant, id, the receiver (JSON), the value of its secrets, which may be sealed.
-- Reply: 1, or 0 if the tenant has as many receivers as it may have.
-- @include foreign_keys, keys, receivers
local receivers = receivers_key(ARGV[1])
delete_unless('hash', receivers)
delete_unless('hash', RECEIVER_SECRETS)
if redis.call('HLEN', receivers) >= MAX_RECEIVERS then return 0 end
redis.call('HSET', receivers, ARGV[2], ARGV[3])
redis.call('HSET', RECEIVER_SECRETS, ARGV[2], ARGV[4])
return 1
