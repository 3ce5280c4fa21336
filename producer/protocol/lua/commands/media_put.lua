-- Store the bytes of a picture or a sound. Stored again, it is only kept longer.
-- KEYS: none. ARGV: name, tenant, kind, bytes (before sealing), ttl_ms (after the end of a job), keep_ms (without one),
-- max_memory_percent ('' = no limit), content.
-- Reply: STORED, FULL (it would take more of Redis' memory than the limit), or GONE (its object was deleted).
-- @include keys, media, memory, payloads, sealed, server, usage
local name, tenant, ttl_ms, content = ARGV[1], ARGV[2], tonumber(ARGV[5]), ARGV[8]
local now = now_ms()
local keep_until = now + tonumber(ARGV[6])
local object, object_key = split_reference(content)
local key = media_key(name)
if redis.call('EXISTS', key) == 0 then
  if object and not is_payload_noted(object, now) then return redis.status_reply('GONE') end
  read_usage({ 'reserved' })
  if memory_reply(tonumber(ARGV[7]), usage_values, #content, 0, now) then return redis.status_reply('FULL') end
  redis.call('HSET', key, 'tenant', tenant, 'kind', ARGV[3], 'bytes', ARGV[4], 'ttl_ms', ttl_ms, 'at_ms', now,
    'media', content, 'keep_until_ms', keep_until)
  local piece = split_sealed(content)
  local key_id = piece and piece.key_id or object_key ~= '-' and object_key
  if key_id then redis.call('HSET', key, 'key_id', key_id) end
  if object then
    redis.call('HSET', key, 'object', object)
    redis.call('ZADD', PAYLOADS, 'XX', now + PAYLOAD_CHECK_MS, object)
  end
  expire_media(name, keep_until, now)
else
  redis.call('HSET', key, 'ttl_ms', ttl_ms)
  keep_media(name, keep_until, now)
end
redis.call('ZADD', MEDIA_DUE, 'NX', keep_until, name)
return redis.status_reply('STORED')
