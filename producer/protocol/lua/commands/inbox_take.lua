-- Take documents from the inbox, each under a job id and a lease. A document that is not settled before its lease ends
-- is handed out again under the same id, so it is submitted once, whichever process dies. If the process that had taken
-- it is gone, that counts as a lost worker: then the document is handed out alone, so that it can harm no other, and at
-- the third loss it becomes a dead letter.
-- KEYS: none. ARGV: lease_ms, limit (documents per call), max_taken (documents that may be taken at a time), max_bytes
-- (of a document; a longer one becomes a dead letter), max_total_bytes (of a reply), the caller's session, milliseconds
-- since it connected, ids of its encryption keys (each has a dot), then `limit` fresh job ids. If the call is repeated
-- because its reply was lost, some of these ids are in use: their documents are handed out again.
-- Reply: {end of the lease, id, document, id, document ...}.
-- @include dead_letters, keys, server, sessions
local lease_ms, limit, max_taken = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local max_bytes, max_total_bytes = tonumber(ARGV[4]), tonumber(ARGV[5])
local session, connected_ms, has_keys = ARGV[6], tonumber(ARGV[7]), string.find(ARGV[8], '.', 1, true) ~= nil
local KEPT_BYTES = 4096 -- of a document that is too long
local MAX_LOST_WORKERS = 3
local now, num_bytes = now_ms(), 0
local reply = { now + lease_ms }

-- Return how many workers were lost while they had a document, the one that has it now included; nil if that one seems
-- to be lost and the caller may not judge yet.
local function num_lost_workers(id)
  local text = redis.call('HGET', INBOX_TAKERS, id)
  local num, taker = string.match(text or '', '^(%d+) (.*)$')
  num = tonumber(num) or 0
  if not is_taker_gone(taker or '', session) then return num end
  return connected_ms >= OBSERVER_MS and num + 1 or nil
end

local function hand_out(id, document, num_lost)
  redis.call('ZADD', INBOX_TAKEN, now + lease_ms, id)
  redis.call('HSET', INBOX_TAKERS, id, string.format('%d %s', num_lost or 0, session))
  reply[#reply + 1] = id
  reply[#reply + 1] = document
  num_bytes = num_bytes + #document
end

-- A worker with keys seals the letter afterwards: no script can.
local function add_letter(id, reason, payload)
  add_dead_letter(id, 'message', reason, payload, INBOX, now)
  if has_keys then redis.call('SADD', PLAIN_LETTERS, id) end
end

-- Make a dead letter of a document.
local function drop(id, document, reason)
  redis.call('ZREM', INBOX_TAKEN, id)
  redis.call('HDEL', INBOX_DOCUMENTS, id)
  redis.call('HDEL', INBOX_TAKERS, id)
  add_letter(id, reason, document)
end

local function has_room() return #reply < 2 * limit + 1 and num_bytes < max_total_bytes end

for _, id in ipairs(redis.call('ZRANGEBYSCORE', INBOX_TAKEN, '-inf', now, 'LIMIT', 0, limit)) do
  if not has_room() then break end
  local document, num_lost = redis.call('HGET', INBOX_DOCUMENTS, id), num_lost_workers(id)
  if not document then
    redis.call('ZREM', INBOX_TAKEN, id)
    redis.call('HDEL', INBOX_TAKERS, id)
  elseif not string.match(id, '^[%w_-]+$') then -- batchmill never writes such an id
    drop(id, string.sub(document, 1, KEPT_BYTES), 'unusable_id')
  elseif num_lost and num_lost >= MAX_LOST_WORKERS then
    drop(id, document, 'delivery_limit: ' .. num_lost .. ' workers were lost while they had this document, the last '
      .. 'times alone; look at their logs, correct it and push it again')
  elseif num_lost == 0 then
    hand_out(id, document)
  elseif num_lost and #reply == 1 then
    hand_out(id, document, num_lost)
    return reply
  end
end

-- Take one new document under an id. Return false if the inbox is empty.
local function take_next(id)
  local document = redis.call('RPOP', INBOX_ARRIVED) or redis.call('RPOP', INBOX)
  if not document then return false end
  if #document > max_bytes then
    local reason = 'too_large: the document has ' .. #document .. ' bytes, the limit is '
      .. max_bytes .. '; shorten it (its first ' .. KEPT_BYTES .. ' bytes are kept here)'
    add_letter(id, reason, string.sub(document, 1, KEPT_BYTES))
  else
    redis.call('HSET', INBOX_DOCUMENTS, id, document)
    hand_out(id, document)
  end
  return true
end

for i = 9, #ARGV do
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
