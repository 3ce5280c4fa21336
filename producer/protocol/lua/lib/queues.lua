-- The registry of queues that hold jobs, by the time of the sweep's last visit (ms).
-- @include foreign_keys, keys

-- Note a queue that gets a job. One that is new is visited after those that wait longer.
local function register_queue(queue, now) redis.call('ZADD', QUEUES, 'NX', now, queue) end

-- The queues that were visited longest ago, at most `limit` of them, so that one call costs the same however many
-- queues exist.
local function next_queues(limit)
  delete_unless('zset', QUEUES)
  return redis.call('ZRANGE', QUEUES, 0, limit - 1)
end

-- Note a visit, and remove a queue without jobs: any producer may name any model.
local function end_queue_visit(queue, now)
  local is_empty = redis.call('EXISTS', queued_key(queue), turns_key(queue), announced_key(queue)) == 0
  if is_empty then
    redis.call('ZREM', QUEUES, queue)
    redis.call('ZREM', SERVED, queue)
    redis.call('DEL', used_key(queue))
  else
    redis.call('ZADD', QUEUES, 'XX', now, queue)
  end
end

-- Whether no worker has served a queue for `ttl_ms`. A queue that is not known yet counts as served now.
local function is_unserved(queue, ttl_ms, now)
  redis.call('ZADD', SERVED, 'NX', now, queue)
  return now - redis.call('ZSCORE', SERVED, queue) >= ttl_ms
end
