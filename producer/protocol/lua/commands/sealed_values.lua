-- Tell which keys some records are sealed with: the beginnings of their values, which name the key.
-- KEYS: none. ARGV: kind of the records ('job', 'letter', 'event', 'media', 'receiver' or 'file'), ids...
-- Reply: for each id a list of names and beginnings. Of an output that is sealed with several keys there is one
-- beginning per key; of one that is not sealed it is '-'.
-- @include keys, sealed
local SHOWN_BYTES = 512 -- a whole reference to an object, and more than the header of a sealed value
local JOB_FIELDS = { 'doc', 'result', 'celery_embed', 'plan_state', 'fingerprint', 'sealed_with' }
local kind = ARGV[1]

local function show(found, name, value)
  if not value or value == '' then return end
  found[#found + 1] = name
  found[#found + 1] = string.sub(value, 1, SHOWN_BYTES)
end

local function show_fields(found, key, names)
  local values = redis.pcall('HMGET', key, unpack(names))
  if values.err then return end
  for i, name in ipairs(names) do show(found, name, values[i]) end
end

local function show_idempotency_entry(found, id)
  local f = redis.pcall('HMGET', job_key(id), 'tenant', 'idempotency_key')
  if f.err or not (f[1] and f[2]) then return end
  local entry = redis.pcall('HMGET', idempotency_key(f[1], f[2]), 'id', 'fingerprint')
  if not entry.err and entry[1] == id then show(found, 'fingerprint', entry[2]) end
end

local function show_output(found, name, key, seals)
  local length, known, is_sealed = redis.pcall('STRLEN', key), {}, false
  if type(length) ~= 'number' or length == 0 then return end
  for i = 1, #seals, 2 do
    local start = string.sub(seals[i], 1, #name + 1) == name .. ':' and string.find(seals[i + 1], ' ', 1, true)
    if start then
      is_sealed = true
      local key_length = string.byte(seals[i + 1], start + #SEAL_MAGIC + 1) or 0
      known[string.sub(seals[i + 1], start + 1, start + #SEAL_MAGIC + 1 + key_length)] = true
    end
  end
  for beginning in pairs(known) do show(found, name, beginning) end
  if not is_sealed then show(found, name, '-') end
end

-- A letter about a webhook has a reason in place of a document.
local function show_letter(found, key)
  local about = redis.pcall('HGET', key, 'kind')
  if about == 'job' or about == 'message' then show_fields(found, key, { 'payload' }) end
end

local reply = {}
for i = 2, #ARGV do
  local id, found = ARGV[i], {}
  if kind == 'job' then
    show_fields(found, job_key(id), JOB_FIELDS)
    show_idempotency_entry(found, id)
    local seals = redis.pcall('HGETALL', seals_key(id))
    if seals.err then seals = {} end
    show_output(found, 'tokens', tokens_key(id), seals)
    show_output(found, 'text', text_key(id), seals)
    show_output(found, 'thoughts', thoughts_key(id), seals)
  elseif kind == 'letter' then
    show_letter(found, dead_key(id))
  elseif kind == 'event' then
    show_fields(found, event_key(id), { 'body' })
  elseif kind == 'media' then
    show_fields(found, media_key(id), { 'media' })
  elseif kind == 'receiver' then
    show(found, 'secrets', redis.call('HGET', RECEIVER_SECRETS, id))
  else
    local value = redis.pcall('GET', file_key(id))
    if type(value) == 'string' then show(found, 'file', value) end
  end
  reply[#reply + 1] = found
end
return reply
