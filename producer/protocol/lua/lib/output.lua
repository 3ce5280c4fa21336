-- The output of a running job: tokens and text, appended at checkpoints. A call that is repeated because its reply
-- was lost changes nothing.
-- @include keys

-- Append text at a position in bytes. Text that leaves a gap or contradicts the stored text is dropped: readers get it
-- with the result, and never see text that is taken back later.
local function append_text(id, position, text)
  local key = text_key(id)
  local stored = redis.call('STRLEN', key)
  if stored < position or stored >= position + #text then return end
  local overlap = ''
  if stored > position then overlap = redis.call('GETRANGE', key, position, stored - 1) end
  if overlap ~= string.sub(text, 1, #overlap) then return end
  redis.call('APPEND', key, string.sub(text, #overlap + 1))
end

-- Append tokens at a position in bytes. Return false if they leave a gap or contradict the stored tokens.
local function append_tokens(id, position, bytes)
  local key = tokens_key(id)
  local stored = redis.call('STRLEN', key)
  if stored < position then return false end
  if stored > position and #bytes > 0 then
    local overlap = redis.call('GETRANGE', key, position, position + #bytes - 1)
    if overlap ~= string.sub(bytes, 1, #overlap) then return false end
    bytes = string.sub(bytes, #overlap + 1)
  end
  if #bytes > 0 then redis.call('APPEND', key, bytes) end
  return true
end

-- Let the output start over. Readers of the stream see it from the counter.
local function discard_output(id)
  redis.call('HDEL', job_key(id), 'tokens_at_loss') -- the next loss counts tokens from 0 again
  if redis.call('DEL', tokens_key(id)) == 0 then return end
  redis.call('HINCRBY', job_key(id), 'restarts', 1)
  redis.call('HDEL', job_key(id), 'output_told')
  redis.call('DEL', text_key(id))
end
