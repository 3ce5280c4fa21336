-- Remove a document from the inbox, or put it off until a retry.
-- KEYS: none. ARGV: id, retry_in_ms ('' = remove it), max_waiting (documents that may wait for a retry), end of the
-- lease as `inbox_take` returned it ('' = any).
-- Reply: OK.
-- @include keys, server
allow_writes_when_full()
local id, retry_in_ms, max_waiting = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local document = redis.call('HGET', INBOX_DOCUMENTS, id)
if not document then return 'OK' end -- a repeated call, or a worker that had lost its lease
-- A worker whose lease ran out must not put the document off: another may be submitting it right now.
local until_ms = tonumber(ARGV[4])
local held_until = tonumber(redis.call('ZSCORE', INBOX_TAKEN, id) or nil)
if retry_in_ms and until_ms and held_until ~= until_ms then return 'OK' end
if retry_in_ms and redis.call('ZCARD', INBOX_TAKEN) <= max_waiting then
  redis.call('ZADD', INBOX_TAKEN, 'XX', now_ms() + retry_in_ms, id)
  redis.call('HDEL', INBOX_TAKERS, id) -- no worker is at fault while it waits
  return 'OK'
end
redis.call('ZREM', INBOX_TAKEN, id)
redis.call('HDEL', INBOX_DOCUMENTS, id)
redis.call('HDEL', INBOX_TAKERS, id)
-- Too many documents wait for one full queue and would hold up those for other queues: back to the end of the line.
if retry_in_ms then redis.call('LPUSH', INBOX, document) end
return 'OK'
