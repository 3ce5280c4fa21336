-- Announcements: the messages in a queue's Celery list, a window of the jobs that wait.
-- @include celery_message, fair_share, guard, keys, record

local DEFAULT_WINDOW_JOBS = 8 -- messages in a queue's list, unless the operator has set WINDOW
local MAX_WITHDRAW_LENGTH = 64 -- a longer list is not searched for a message

-- kombu pops from the right, so LPUSH adds to the tail of the queue and RPUSH to its head.
local function announce_job(id, queue, at_head, now)
  local number = redis.call('HINCRBY', job_key(id), 'announcements', 1)
  redis.call('HSET', job_key(id), 'announced_at_ms', now)
  redis.call('ZADD', queued_key(queue), now, id)
  redis.call(at_head and 'RPUSH' or 'LPUSH', queue, celery_message(id, queue, number))
end

-- Remove the message of an announced job, so that the list names only jobs that wait. A message that stays is refused
-- at its claim.
local function withdraw_announcement(id, queue)
  if redis.call('LLEN', queue) > MAX_WITHDRAW_LENGTH then return end
  local number = tonumber(redis.call('HGET', job_key(id), 'announcements') or 0)
  redis.call('LREM', queue, 1, celery_message(id, queue, number))
end

-- Announce waiting jobs until the queue's list is full, each time the oldest job of the tenant that is next.
local function fill_window(queue, now)
  -- Plain Celery tasks in the list take no room, or a stream of them would keep all other jobs from being announced.
  local announced = redis.call('ZCOUNT', queued_key(queue), '-inf', '(+inf')
  local taken = math.min(announced, redis.call('LLEN', queue))
  local room = tonumber(redis.call('GET', WINDOW) or DEFAULT_WINDOW_JOBS) - taken
  while room > 0 do
    local tenant = redis.call('ZRANGE', turns_key(queue), 0, 0)[1]
    if not tenant then return end
    local id = redis.call('ZPOPMIN', backlog_key(queue, tenant))[1]
    local job = id and load_job(id)
    if job and job.state == 'queued' then
      room = room - guard_job(id, 0, function()
        charge_tenant(id, job)
        announce_job(id, queue, false, now)
        return 1
      end)
    elseif id then
      redis.call('ZREM', queued_key(queue), id) -- the record was deleted by hand, or is malformed
    end
    drop_tenant_if_idle(queue, tenant)
  end
end

-- Move jobs whose delay is over to the backlog and fill the windows. Return how many delays ended.
local function announce_due_jobs(limit, now)
  local ids = redis.call('ZRANGEBYSCORE', SCHEDULED, '-inf', now, 'LIMIT', 0, limit, 'WITHSCORES')
  for i = 1, #ids, 2 do
    redis.call('ZREM', SCHEDULED, ids[i])
    local job = load_job(ids[i])
    if job and job.state == 'queued' then
      add_to_backlog(ids[i], job, ids[i + 1] * 1000)
      fill_window(job.queue, now)
    elseif not job then -- deleted by hand, and its queue is unknown: search them all
      for _, queue in ipairs(redis.call('SMEMBERS', QUEUES)) do
        redis.pcall('ZREM', queued_key(queue), ids[i]) -- the set may name a key of another type
      end
    end
  end
  return #ids / 2
end
