-- ARGV: id, retry_in_ms ('' = done with it), max_waiting (documents that may wait for their retry), end
-- of the lease as `inbox_take` told it ('' = whatever it is now).
-- Answers OK.
write_even_when_full()
local id, retry_in_ms, max_waiting = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local document = redis.call('HGET', INBOX_DOCUMENTS, id)
if not document then return 'OK' end -- the same call again, or a worker that had lost its lease
-- One whose lease ran out puts nothing off: another may be making a job of it just now.
local until_ms = tonumber(ARGV[4])
local held_until = tonumber(redis.call('ZSCORE', INBOX_TAKEN, id) or nil)
if retry_in_ms and until_ms and held_until ~= until_ms then return 'OK' end
if retry_in_ms and redis.call('ZCARD', INBOX_TAKEN) <= max_waiting then
  redis.call('ZADD', INBOX_TAKEN, 'XX', now_ms() + retry_in_ms, id)
  return 'OK'
end
redis.call('ZREM', INBOX_TAKEN, id)
redis.call('HDEL', INBOX_DOCUMENTS, id)
-- So many wait for one full queue that they would hold up those of others: to the end of the line.
if retry_in_ms then redis.call('LPUSH', INBOX, document) end
return 'OK'
