-- Push the message of a Celery task onto its list, but only once: a repeated call finds that it was sent.
-- KEYS: none. ARGV: list, message, name of the sending (task id, number of its retry), milliseconds to remember it.
-- Reply: 1 if the message was pushed, 0 if it had been sent before.
-- @include keys
local list, message, sending, ttl_ms = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
if redis.call('EXISTS', sent_task_key(sending)) == 1 then return 0 end
redis.call('LPUSH', list, message) -- first: it is refused if the list is a key of another type
redis.call('SET', sent_task_key(sending), '', 'PX', ttl_ms)
return 1
