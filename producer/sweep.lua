-- ARGV: limit (jobs a kind and call), reannounce_grace_ms.
-- Answers {requeued, dead, cancelled, expired, reannounced}.
write_even_when_full()
local limit, grace_ms, now = tonumber(ARGV[1]), tonumber(ARGV[2]), now_ms()
local counts = { REQUEUED = 0, DEAD = 0, CANCELLED = 0, EXPIRED = 0, NONE = 0 }

for _, id in ipairs(redis.call('ZRANGEBYSCORE', LEASES, '-inf', now, 'LIMIT', 0, limit)) do
  local outcome = guarded(id, 'DEAD', function()
    local job = load_job(id)
    if job and job.state == 'in_progress' then return put_back(id, job, 'engine_death', now) end
    redis.call('ZREM', LEASES, id) -- a record removed by hand must not stop the sweep of all others
    return 'NONE'
  end)
  counts[outcome] = counts[outcome] + 1
end

for _, id in ipairs(redis.call('ZRANGEBYSCORE', DEADLINES, '-inf', now, 'LIMIT', 0, limit)) do
  local outcome = guarded(id, 'DEAD', function()
    local job = load_job(id)
    if not job or job.state ~= 'queued' then
      redis.call('ZREM', DEADLINES, id)
      return 'NONE'
    end
    expire(id, job, now)
    return 'EXPIRED'
  end)
  counts[outcome] = counts[outcome] + 1
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
      reannounced = reannounced + guarded(ids[i], 0, function()
        if redis.call('EXISTS', job_key(ids[i])) == 1 then
          announce(ids[i], queue, true, now)
          return 1
        end
        redis.call('ZREM', queued_key(queue), ids[i])
        return 0
      end)
    end
  end
end

redis.call('ZREMRANGEBYSCORE', DEAD, '-inf', now - DEAD_TTL_MS)
return { counts.REQUEUED, counts.DEAD, counts.CANCELLED, counts.EXPIRED, reannounced }
