-- Sealed content: which key sealed it. No script reads the content itself (`protocol/content.py`).
-- @include keys

local SEAL_MAGIC = '\181BM1'
local SEAL_BYTE = 181
local SEAL_NONCE_BYTES = 12
local SEAL_TAG_BYTES = 16
local READS_PAYLOADS = '@payloads' -- stands for a key: a worker without an object store does not have it

-- The parts of a sealed value: the id of its key, what stands before the ciphertext, the ciphertext, and the tag; nil
-- if the value is not sealed.
local function split_sealed(value)
  -- The first byte tells it mostly, and makes no new string.
  if string.byte(value) ~= SEAL_BYTE or string.sub(value, 1, #SEAL_MAGIC) ~= SEAL_MAGIC then return nil end
  local key_start = #SEAL_MAGIC + 2
  local key_length = string.byte(value, key_start - 1) or 0
  local header_bytes = key_start - 1 + key_length + SEAL_NONCE_BYTES
  if #value < header_bytes + SEAL_TAG_BYTES then return nil end
  return {
    key_id = string.sub(value, key_start, key_start + key_length - 1),
    header = string.sub(value, 1, header_bytes),
    ciphertext = string.sub(value, header_bytes + 1, -SEAL_TAG_BYTES - 1),
    tag = string.sub(value, -SEAL_TAG_BYTES),
  }
end

-- Note in a job's record that a worker needs this key to run it.
-- @rare
local function note_seal_key(id, key_id)
  local known = redis.call('HGET', job_key(id), 'sealed_with')
  if known and string.find(' ' .. known .. ' ', ' ' .. key_id .. ' ', 1, true) then return end
  redis.call('HSET', job_key(id), 'sealed_with', known and known .. ' ' .. key_id or key_id)
end

-- The first key that a job was sealed with (`sealed_with` of its record) and that is not among some keys; nil if all
-- are. Both are ids with spaces between them.
-- @rare
local function missing_seal_key(needed, key_ids)
  for key_id in string.gmatch(needed or '', '%S+') do
    if not string.find(' ' .. key_ids .. ' ', ' ' .. key_id .. ' ', 1, true) then return key_id end
  end
end
