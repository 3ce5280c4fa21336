-- The output of a running job: tokens and text, appended at checkpoints. A call that is repeated because its reply
-- was lost changes nothing. A sealed piece is stored as its ciphertext, which is as long as what it hides, so that all
-- counts are the same; its seal is stored beside it, under its place in the output.
-- @include keys, record, sealed

-- Remove an output from a position on, and the seals of what is removed. Return false if the position is in the middle
-- of a sealed piece.
local function cut_output(id, kind, key, position)
  local removed, seals = {}, redis.call('HGETALL', seals_key(id))
  for i = 1, #seals, 2 do
    local start = tonumber(string.match(seals[i], '^' .. kind .. ':(%d+)$') or nil)
    local length = start and tonumber(string.match(seals[i + 1], '^(%d+) ') or nil)
    if start and length then
      if start < position and start + length > position then return false end
      if start >= position then removed[#removed + 1] = seals[i] end
    end
  end
  for _, name in ipairs(removed) do redis.call('HDEL', seals_key(id), name) end
  local kept = position > 0 and redis.call('GETRANGE', key, 0, position - 1) or ''
  redis.call('DEL', key)
  if #kept > 0 then redis.call('APPEND', key, kept) end
  return true
end

-- Append a sealed piece. What overlaps cannot be compared: only the holder of the fence writes, and it computes the
-- same output again, so a longer piece replaces what was stored from its position on. Return the length of the output
-- in bytes, or false if the piece leaves a gap.
-- @rare
local function append_sealed(id, kind, key, position, piece)
  local stored, length = redis.call('STRLEN', key), #piece.ciphertext
  if stored < position then return false end
  if length == 0 then return stored end
  local is_repeated = position + length == stored
    and redis.call('HEXISTS', seals_key(id), kind .. ':' .. position) == 1
  if is_repeated then return stored end
  if stored > position and not cut_output(id, kind, key, position) then return false end
  redis.call('APPEND', key, piece.ciphertext)
  redis.call('HSET', seals_key(id), kind .. ':' .. position, length .. ' ' .. piece.header .. piece.tag)
  note_seal_key(id, piece.key_id)
  return position + length
end

-- Append a piece at a position in bytes if the output ends there, as mostly. Return whether it does. Redis says with
-- the reply to APPEND how long the output was; to ask before would take as long again.
local function append_at_end(key, position, piece)
  local kept = redis.call('APPEND', key, piece) - #piece
  if kept == position then return true end
  if kept == 0 then
    redis.call('DEL', key)
  else
    redis.call('SET', key, redis.call('GETRANGE', key, 0, kept - 1), 'KEEPTTL')
  end
  return false
end

-- Append text (`kind` is 'text') or thoughts ('thoughts') at a position in bytes. What leaves a gap or contradicts what
-- is stored is dropped: readers get it with the result, and never see text that is taken back later.
local function append_text(id, kind, position, text)
  if text == '' then return end
  local key, piece = kind == 'text' and text_key(id) or thoughts_key(id), split_sealed(text)
  if piece then return append_sealed(id, kind, key, position, piece) end
  if append_at_end(key, position, text) then return end
  local stored = redis.call('STRLEN', key)
  if stored < position or stored >= position + #text then return end
  local overlap = redis.call('GETRANGE', key, position, stored - 1)
  if overlap ~= string.sub(text, 1, #overlap) then return end
  redis.call('APPEND', key, string.sub(text, #overlap + 1))
end

-- Append tokens at a position in bytes. Return the length of the output in bytes, or false if they leave a gap or
-- contradict the stored tokens; and whether they are sealed.
local function append_tokens(id, position, bytes)
  local key, piece = tokens_key(id), split_sealed(bytes)
  if piece then return append_sealed(id, 'tokens', key, position, piece), true end
  if bytes ~= '' and append_at_end(key, position, bytes) then return position + #bytes, false end
  local stored = redis.call('STRLEN', key)
  if stored < position then return false end
  if stored > position and #bytes > 0 then
    local overlap = redis.call('GETRANGE', key, position, position + #bytes - 1)
    if overlap ~= string.sub(bytes, 1, #overlap) then return false end
    bytes = string.sub(bytes, #overlap + 1)
  end
  if #bytes > 0 then redis.call('APPEND', key, bytes) end
  return stored + #bytes, false
end

-- Let the output start over. Readers of the stream see it from the counter.
-- @rare
local function discard_output(id)
  discard_plan(id)
  redis.call('HDEL', job_key(id), 'tokens_at_loss') -- the next loss counts tokens from 0 again
  if redis.call('DEL', tokens_key(id)) == 0 then return end
  redis.call('HINCRBY', job_key(id), 'restarts', 1)
  redis.call('HDEL', job_key(id), 'output_told')
  redis.call('DEL', text_key(id), thoughts_key(id), seals_key(id))
end
