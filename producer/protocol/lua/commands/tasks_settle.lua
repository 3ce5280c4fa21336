-- Settle a plain Celery task that was taken: drop it, because it has a record or never can have one; let it announce
-- the stored job that it names; or put it off.
-- KEYS: none. ARGV: id, what to do ('drop', 'announce' or 'put_off'), for 'announce' the queue and the message, for
-- 'put_off' the delay in ms and the end of the lease as `tasks_take` returned it.
-- Reply: OK.
-- @include keys, server
allow_writes_when_full()
local id, action, argument = ARGV[1], ARGV[2], ARGV[3]
-- A repeated call, or a worker that had lost its lease.
if redis.call('EXISTS', taken_task_key(id)) == 0 then return 'OK' end
if action == 'put_off' then
  -- A worker whose lease ran out must not put the task off: another may be storing it right now.
  if tonumber(redis.call('ZSCORE', TASKS_TAKEN, id) or nil) ~= tonumber(ARGV[4]) then return 'OK' end
  redis.call('ZADD', TASKS_TAKEN, now_ms() + tonumber(argument), id)
  redis.call('HDEL', taken_task_key(id), 'taker') -- no worker is at fault while it waits
  return 'OK'
end
if action == 'announce' then redis.call('LPUSH', announced_key(argument), ARGV[4]) end
redis.call('ZREM', TASKS_TAKEN, id)
redis.call('DEL', taken_task_key(id))
return 'OK'
