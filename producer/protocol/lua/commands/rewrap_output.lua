-- Replace sealed pieces of a job's output by the same under another key, each if nothing has changed it meanwhile.
-- KEYS: none. ARGV: id, then for each piece: its kind ('tokens', 'text' or 'thoughts'), position (bytes), the seal that
-- is stored ('plain ' and the SHA-1 of the whole output if it is not sealed), and the new sealed value.
-- Reply: how many were replaced.
-- @include keys, sealed, server
allow_writes_when_full()
local id, num_replaced = ARGV[1], 0

local function output_key(kind)
  if kind == 'tokens' then return tokens_key(id) end
  return kind == 'text' and text_key(id) or thoughts_key(id)
end

-- Whether an output is stored as it is, and does not grow: its worker may have no key.
local function is_plain(kind, key, seal)
  local digest = redis.call('HEXISTS', job_key(id), 'finished_at_ms') == 1 and string.match(seal, '^plain (%x+)$')
  if not digest or redis.sha1hex(redis.call('GET', key) or '') ~= digest then return false end
  for _, name in ipairs(redis.call('HKEYS', seals_key(id))) do
    if string.sub(name, 1, #kind + 1) == kind .. ':' then return false end
  end
  return true
end

for i = 2, #ARGV, 4 do
  local kind, position, piece = ARGV[i], tonumber(ARGV[i + 1]), split_sealed(ARGV[i + 3])
  local name, key = kind .. ':' .. ARGV[i + 1], output_key(kind)
  local is_stored = redis.call('HGET', seals_key(id), name) == ARGV[i + 2]
    and redis.call('STRLEN', key) >= position + #piece.ciphertext
  if is_stored or is_plain(kind, key, ARGV[i + 2]) then
    redis.call('SETRANGE', key, position, piece.ciphertext)
    redis.call('HSET', seals_key(id), name, #piece.ciphertext .. ' ' .. piece.header .. piece.tag)
    note_seal_key(id, piece.key_id)
    num_replaced = num_replaced + 1
  end
end
-- New seals live as long as the output.
local ttl_ms = redis.call('PTTL', job_key(id))
if ttl_ms > 0 then redis.call('PEXPIRE', seals_key(id), ttl_ms) end
return num_replaced
