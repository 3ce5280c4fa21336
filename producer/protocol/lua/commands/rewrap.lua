-- Replace a stored value by the same content under another key, if nothing has changed it meanwhile.
-- KEYS: none. ARGV: kind of the record ('job', 'letter', 'event', 'media', 'receiver' or 'file'), id, field, SHA-1 of
-- the value that is replaced (hex), new value.
-- Reply: 1, or 0 if another value is stored.
-- @include keys, payloads, sealed, server
allow_writes_when_full()
local kind, id, field, value = ARGV[1], ARGV[2], ARGV[3], ARGV[5]

if kind == 'file' then
  local known = redis.call('GET', file_key(id))
  if not known or redis.sha1hex(known) ~= ARGV[4] then return 0 end
  redis.call('SET', file_key(id), value, 'KEEPTTL')
  return 1
end
local key = job_key(id)
if kind == 'receiver' then
  key, field = RECEIVER_SECRETS, id
elseif kind == 'letter' then
  key = dead_key(id)
elseif kind == 'event' then
  key = event_key(id)
elseif kind == 'media' then
  key = media_key(id)
end
local now, payload, payload_key = now_ms(), split_reference(value)
local has_payload = not payload or is_payload_noted(payload, now)
local known = redis.call('HGET', key, field)
if not (known and has_payload) or redis.sha1hex(known) ~= ARGV[4] then return 0 end
redis.call('HSET', key, field, value)
local piece, old_payload = split_sealed(value), split_reference(known)
local key_id = piece and piece.key_id or payload_key
if kind == 'job' then
  -- Until `rewrap_settle` the job needs the old key as well: a claim may have read the old value.
  if field == 'doc' and payload then note_seal_key(id, READS_PAYLOADS) end
  local is_for_worker = field == 'doc' or field == 'plan_state'
  if is_for_worker and key_id and key_id ~= '-' then note_seal_key(id, key_id) end
  if payload then keep_payload(id, payload, redis.call('HGET', key, 'payloads'), now) end
elseif payload then
  redis.call('ZADD', PAYLOADS, 'XX', now + PAYLOAD_CHECK_MS, payload)
end
-- The old object stays for a while: a program may have read the old reference, and be about to read the object.
if old_payload then redis.call('ZADD', PAYLOADS, 'XX', now + PAYLOAD_CHECK_MS, old_payload) end
if kind == 'letter' then redis.call('SREM', PLAIN_LETTERS, id) end
if kind == 'media' then
  -- What `note_media_keys` tells the jobs that name it.
  redis.call('HSET', key, 'key_id', key_id)
  if payload then redis.call('HSET', key, 'object', payload) else redis.call('HDEL', key, 'object') end
end
return 1
