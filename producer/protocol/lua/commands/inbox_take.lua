-- ARGV: lease_ms, limit (documents a call), max_taken (documents that may be taken at a time),
-- max_bytes (of a document; a longer one becomes a dead letter), max_total_bytes (of an answer), then
-- `limit` fresh job ids.
-- Answers {end of the lease, id, document, id, document ...}. What is not settled before the lease is over is handed
-- out again, under the same id: so a document is submitted once, whoever dies. Where this is the same
-- call again, whose answer was lost, its ids are in use: what is under them is handed out once more.
local lease_ms, limit, max_taken = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local max_bytes, max_total_bytes = tonumber(ARGV[4]), tonumber(ARGV[5])
local KEPT_BYTES = 4096 -- of a document that is too long
local now, num_bytes = now_ms(), 0
local answer = { now + lease_ms }

local function hand_out(id, document)
  redis.call('ZADD', INBOX_TAKEN, now + lease_ms, id)
  answer[#answer + 1] = id
  answer[#answer + 1] = document
  num_bytes = num_bytes + #document
end

local function has_room() return #answer < 2 * limit + 1 and num_bytes < max_total_bytes end

for _, id in ipairs(redis.call('ZRANGEBYSCORE', INBOX_TAKEN, '-inf', now, 'LIMIT', 0, limit)) do
  if not has_room() then break end
  local document = redis.call('HGET', INBOX_DOCUMENTS, id)
  if document then hand_out(id, document) else redis.call('ZREM', INBOX_TAKEN, id) end
end

-- One new document under an id; false where the inbox is empty.
local function take_next(id)
  local document = redis.call('RPOP', INBOX_ARRIVED) or redis.call('RPOP', INBOX)
  if not document then return false end
  if #document > max_bytes then
    local reason = 'too_large: the document has ' .. #document .. ' bytes, the limit is '
      .. max_bytes .. '; shorten it (its first ' .. KEPT_BYTES .. ' bytes are kept here)'
    add_dead_letter(id, 'message', reason, string.sub(document, 1, KEPT_BYTES), INBOX, now)
  else
    redis.call('HSET', INBOX_DOCUMENTS, id, document)
    hand_out(id, document)
  end
  return true
end

for i = 6, #ARGV do
  local id = ARGV[i]
  if not has_room() then break end
  local known = redis.call('HGET', INBOX_DOCUMENTS, id)
  if known then
    hand_out(id, known)
  elseif redis.call('EXISTS', dead_key(id)) == 0 then
    if redis.call('ZCARD', INBOX_TAKEN) >= max_taken or not take_next(id) then break end
  end
end
return answer
