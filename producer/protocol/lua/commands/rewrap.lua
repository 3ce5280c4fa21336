-- Replace a stored value by the same content under another key, if nothing has changed it meanwhile.
-- KEYS: none. ARGV: kind of the record ('job', 'letter', 'event', 'media', 'receiver' or 'file'), id, field, SHA-1 of
-- the value that is replaced (hex), new value.
-- Reply: 1, or 0 if another value is stored.
-- @include keys, payloads, sealed, server
allow_writes_when_full()
local kind, id, field, value = ARGV[1], ARGV[2], ARGV[3], ARGV[5]

-- The record refers to another object from now on. The old one stays for a while: a program may have read the old
-- reference, and be about to read the object.
local function drop_later(old, now)
  if old then redis.call('ZADD', PAYLOADS, 'XX', now + PAYLOAD_CHECK_MS, old) end
end

local function exchange_objects(old, now)
  local new, known = split_reference(value), redis.call('HGET', job_key(id), 'payloads')
  if new then keep_payload(id, new, known, now) end
  drop_later(old, now)
end

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
local now, payload = now_ms(), split_reference(value)
local has_payload = not payload or is_payload_noted(payload, now)
local known = redis.call('HGET', key, field)
if not (known and has_payload) or redis.sha1hex(known) ~= ARGV[4] then return 0 end
redis.call('HSET', key, field, value)
if kind == 'job' then
  -- Until `rewrap_settle` the job needs the old key as well: a claim may have read the old value.
  local piece, _, object_key = split_sealed(value), split_reference(value)
  if field == 'doc' and piece then note_seal_key(id, piece.key_id) end
  if field == 'doc' and payload then note_seal_key(id, READS_PAYLOADS) end
  if field == 'doc' and object_key and object_key ~= '-' then note_seal_key(id, object_key) end
  exchange_objects(split_reference(known), now)
elseif kind == 'letter' or kind == 'media' then
  if payload then redis.call('ZADD', PAYLOADS, 'XX', now + PAYLOAD_CHECK_MS, payload) end
  drop_later(split_reference(known), now)
end
if kind == 'letter' then redis.call('SREM', PLAIN_LETTERS, id) end
if kind == 'media' then
  -- What `note_media_keys` tells the jobs that name it.
  local piece, _, object_key = split_sealed(value), split_reference(value)
  redis.call('HSET', key, 'key_id', piece and piece.key_id or object_key)
  if payload then redis.call('HSET', key, 'object', payload) else redis.call('HDEL', key, 'object') end
end
return 1
