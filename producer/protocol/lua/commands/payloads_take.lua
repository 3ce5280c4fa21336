-- Find the objects that nothing refers to any more, and give some of them out for deletion. They are given out again
-- after a while, until `payloads_settle` names them. A call never refers to one of them again.
-- KEYS: none. ARGV: limit, repeat_ms (until one is given out again).
-- Reply: {objects that were looked up, names...}.
-- @include keys, payloads, server
allow_writes_when_full()
local limit, repeat_ms, now = tonumber(ARGV[1]), tonumber(ARGV[2]), now_ms()

-- Until when a value that is stored in a hash refers to the object; nil if it does not.
local function referred_until(key, field, name)
  local value = redis.pcall('HGET', key, field)
  if type(value) ~= 'string' or split_reference(value) ~= name then return nil end
  local ttl_ms = redis.call('PTTL', key)
  return now + (ttl_ms >= 0 and math.min(ttl_ms + 1, PAYLOAD_CHECK_MS) or PAYLOAD_CHECK_MS)
end

local names = redis.call('ZRANGEBYSCORE', PAYLOADS, '-inf', now, 'LIMIT', 0, limit)
for _, name in ipairs(names) do
  local id, field = string.match(name, '^([%w_-]+)%.(%l+)%.')
  local at = id and (referred_until(job_key(id), field, name) or referred_until(dead_key(id), 'payload', name)
    or field == 'media' and referred_until(media_key(id), field, name))
  if at then
    redis.call('ZADD', PAYLOADS, at, name)
  else
    redis.call('ZREM', PAYLOADS, name)
    redis.call('ZADD', PAYLOADS_UNUSED, now, name)
  end
end
local reply = { #names }
for _, name in ipairs(redis.call('ZRANGEBYSCORE', PAYLOADS_UNUSED, '-inf', now, 'LIMIT', 0, limit)) do
  redis.call('ZADD', PAYLOADS_UNUSED, now + repeat_ms, name)
  reply[#reply + 1] = name
end
return reply
