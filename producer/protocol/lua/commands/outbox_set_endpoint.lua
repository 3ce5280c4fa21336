-- Enable or disable an endpoint. A disabled endpoint's waiting events are given up at its next turn.
-- KEYS: none. ARGV: endpoint, '1' to enable it or '0' to disable it.
-- Reply: 1 if that changed anything, otherwise 0.
-- @include endpoints, keys, outbox, server
allow_writes_when_full()
local endpoint, now = ARGV[1], now_ms()
local was_disabled = redis.call('HEXISTS', ENDPOINTS_DISABLED, endpoint) == 1
if was_disabled ~= (ARGV[2] == '1') then return 0 end
if was_disabled then
  redis.call('HDEL', ENDPOINTS_DISABLED, endpoint)
  redis.call('DEL', endpoint_key(endpoint)) -- the breaker is closed as well
else
  disable_endpoint(endpoint, 'by_operator', now)
end
with_endpoint_keys(endpoint, function() schedule_both_classes(endpoint) end)
return 1
