-- ARGV: id, retry_in_ms ('' = done with it). Answers OK.
write_even_when_full()
local id, retry_in_ms = ARGV[1], tonumber(ARGV[2])
if retry_in_ms then
  redis.call('ZADD', INBOX_TAKEN, 'XX', now_ms() + retry_in_ms, id)
else
  redis.call('ZREM', INBOX_TAKEN, id)
  redis.call('HDEL', INBOX_DOCUMENTS, id)
end
return 'OK'
