-- Note again which keys a job is sealed with, after some of its values were sealed with another one.
-- KEYS: none. ARGV: id, fingerprint that is replaced ('' = none), the new one.
-- Reply: ids of the keys, with spaces between them.
-- @include keys, payloads, sealed, server
allow_writes_when_full()
local id = ARGV[1]
local f = redis.call('HMGET', job_key(id), 'sealed_with', 'doc', 'state', 'tenant', 'idempotency_key', 'media',
  'plan_state')
if not f[3] then return '' end
local known = {}
local function add(key_id)
  if key_id and key_id ~= '-' then known[key_id] = true end
end
for each in string.gmatch(f[1] or '', '@%S+') do add(each ~= READS_PAYLOADS and each) end
local piece, name, key_id = split_sealed(f[2] or ''), split_reference(f[2] or '')
add(piece and piece.key_id)
add(key_id)
add(name and READS_PAYLOADS)
piece = split_sealed(f[7] or '')
add(piece and piece.key_id)
-- Seals of a text that the result has replaced say nothing.
local has_output = { tokens = redis.call('EXISTS', tokens_key(id)) == 1, text = redis.call('EXISTS', text_key(id)) == 1,
  thoughts = redis.call('EXISTS', thoughts_key(id)) == 1 }
local seals = redis.call('HGETALL', seals_key(id))
for i = 1, #seals, 2 do
  local seal, start = seals[i + 1], string.find(seals[i + 1], ' ', 1, true)
  local length = start and string.byte(seal, start + #SEAL_MAGIC + 1)
  if length and has_output[string.match(seals[i], '^(%l+):')] then
    add(string.sub(seal, start + #SEAL_MAGIC + 2, start + #SEAL_MAGIC + 1 + length))
  end
end
for media in string.gmatch(f[6] or '', '%x+') do
  local of_media = redis.pcall('HMGET', media_key(media), 'key_id', 'object')
  if not of_media.err then
    add(of_media[1])
    add(of_media[2] and READS_PAYLOADS)
  end
end
local ids = {}
for each in pairs(known) do ids[#ids + 1] = each end
table.sort(ids)
local text = table.concat(ids, ' ')
if f[1] and text ~= f[1] then redis.call('HSET', job_key(id), 'sealed_with', text) end
if ARGV[2] ~= '' then
  if redis.call('HGET', job_key(id), 'fingerprint') == ARGV[2] then
    redis.call('HSET', job_key(id), 'fingerprint', ARGV[3])
  end
  local entry = f[4] and f[5] and idempotency_key(f[4], f[5])
  if entry and redis.pcall('HGET', entry, 'fingerprint') == ARGV[2] then
    redis.call('HSET', entry, 'fingerprint', ARGV[3])
  end
end
return text
