-- Take documents from the inbox, each under a job id and a lease. A document that is not settled before its lease ends
-- is handed out again under the same id, so it is submitted once, whichever process dies.
-- KEYS: none. ARGV: lease_ms, limit (documents per call), max_taken (documents that may be taken at a time), max_bytes
-- (of a document; a longer one becomes a dead letter), max_total_bytes (of a reply), then `limit` fresh job ids. If the
-- call is repeated because its reply was lost, some of these ids are in use: their documents are handed out again.
-- Reply: {end of the lease, id, document, id, document ...}.
-- @include dead_letters, keys, server
local lease_ms, limit, max_taken = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local max_bytes, max_total_bytes = tonumber(ARGV[4]), tonumber(ARGV[5])
local KEPT_BYTES = 4096 -- of a document that is too long
local now, num_bytes = now_ms(), 0
local reply = { now + lease_ms }

local function hand_out(id, document)
  redis.call('ZADD', INBOX_TAKEN, now + lease_ms, id)
  reply[#reply + 1] = id
  reply[#reply + 1] = document
  num_bytes = num_bytes + #document
end

-- Drop a document under an id that batchmill never writes.
local function drop_unusable(id, document)
  redis.call('HDEL', INBOX_DOCUMENTS, id)
  local kept = string.sub(document, 1, KEPT_BYTES)
  add_dead_letter(id, 'message', 'unusable_id', kept, INBOX, now)
end

local function has_room() return #reply < 2 * limit + 1 and num_bytes < max_total_bytes end

for _, id in ipairs(redis.call('ZRANGEBYSCORE', INBOX_TAKEN, '-inf', now, 'LIMIT', 0, limit)) do
  if not has_room() then break end
  local document = redis.call('HGET', INBOX_DOCUMENTS, id)
  if document and string.match(id, '^[%w_-]+$') then
    hand_out(id, document)
  else
    redis.call('ZREM', INBOX_TAKEN, id)
    if document then drop_unusable(id, document) end
  end
end

-- Take one new document under an id. Return false if the inbox is empty.
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
return reply
