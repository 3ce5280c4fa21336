-- ARGV: limit (jobs a kind and call), reannounce_grace_ms.
-- Answers {requeued, dead, cancelled, expired, reannounced}.
write_even_when_full()
local limit, grace_ms, now = tonumber(ARGV[1]), tonumber(ARGV[2]), now_ms()
local counts = { REQUEUED = 0, DEAD = 0, CANCELLED = 0, EXPIRED = 0 }

for _, id in ipairs(redis.call('ZRANGEBYSCORE', LEASES, '-inf', now, 'LIMIT', 0, limit)) do
  local job = load_job(id)
  if job and job.state == 'in_progress' then
    local outcome = put_back(id, job, 'engine_death', now)
    counts[outcome] = counts[outcome] + 1
  else
    redis.call('ZREM', LEASES, id) -- a record removed by hand must not stop the sweep of all others
  end
end

for _, id in ipairs(redis.call('ZRANGEBYSCORE', DEADLINES, '-inf', now, 'LIMIT', 0, limit)) do
  local job = load_job(id)
  if job and job.state == 'queued' then
    expire(id, job, now)
    counts.EXPIRED = counts.EXPIRED + 1
  else
    redis.call('ZREM', DEADLINES, id)
  end
end

local function cancel_page_of_batch(id)
  local start = tonumber(redis.call('HGET', batch_key(id), 'num_swept') or 0)
  local ids = redis.call('ZRANGE', batch_jobs_key(id), start, start + limit - 1)
  redis.call('ZREM', BATCHES_DUE, id)
  if #ids == limit then redis.call('ZADD', BATCHES_DUE, now, id) end
  redis.call('HSET', batch_key(id), 'num_swept', start + #ids)
  for _, job_id in ipairs(ids) do
    local job = load_job(job_id)
    if job and job.state == 'queued' then
      cancel(job_id, job, now)
      counts.CANCELLED = counts.CANCELLED + 1
    elseif job and job.state == 'in_progress' then
      redis.call('HSET', job_key(job_id), 'cancel_requested', '1')
    end
  end
end

-- One look at a batch that is due: it is cancelled, waits for lines in vain, or its record is gone.
local function sweep_batch(id)
  local batch = load_batch(id)
  if not batch then
    redis.call('ZREM', BATCHES_DUE, id)
    redis.call('ZREM', BATCHES, id)
  elseif batch.state == 'cancelling' then
    cancel_page_of_batch(id)
  elseif batch.state == 'validating' and batch.deadline_at_ms and batch.deadline_at_ms <= now then
    redis.call('HSET', batch_key(id), 'total', redis.call('ZCARD', batch_jobs_key(id)),
      'state', 'in_progress', 'is_late', '1')
    redis.call('ZREM', BATCHES_DUE, id)
    end_batch_if_done(id, now) -- else when its last job has expired
  elseif batch.state == 'validating' then
    local text = error_json('batch_abandoned', 'no line came for 24 hours, and it was not sealed')
    begin_to_cancel_batch(id, batch, text, now)
  end
end

for _, id in ipairs(redis.call('ZRANGEBYSCORE', BATCHES_DUE, '-inf', now, 'LIMIT', 0, 10)) do
  sweep_batch(id)
end

-- A queue never gets more announcements than it has waiting jobs, so a long outage of all workers
-- floods nothing. The index is ordered by the last announcement: the jobs whose announcement is
-- oldest come first, and each is announced again in turn.
local reannounced = 0
for _, queue in ipairs(redis.call('SMEMBERS', QUEUES)) do
  local missing = redis.call('ZCARD', queued_key(queue)) - redis.call('LLEN', queue)
  missing = math.min(missing, limit)
  if missing > 0 then
    local ids = redis.call('ZRANGEBYSCORE', queued_key(queue), '-inf', now - grace_ms, 'LIMIT', 0,
      missing)
    for i = #ids, 1, -1 do -- the oldest last: it ends up first in the queue
      if redis.call('EXISTS', job_key(ids[i])) == 1 then
        announce(ids[i], queue, true, now)
        reannounced = reannounced + 1
      else
        redis.call('ZREM', queued_key(queue), ids[i])
      end
    end
  end
end

redis.call('ZREMRANGEBYSCORE', DEAD, '-inf', now - DEAD_TTL_MS)
return { counts.REQUEUED, counts.DEAD, counts.CANCELLED, counts.EXPIRED, reannounced }
