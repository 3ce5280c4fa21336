-- ARGV: limit (jobs a kind and call), reannounce_grace_ms.
-- Answers {requeued, dead, cancelled, expired, reannounced, unindexed}.
write_even_when_full()
local limit, grace_ms, now = tonumber(ARGV[1]), tonumber(ARGV[2]), now_ms()
local counts = { REQUEUED = 0, DEAD = 0, CANCELLED = 0, EXPIRED = 0 }

announce_due(limit, now)

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

-- A queue never gets more announcements than it has announced jobs, so a long outage of all workers
-- floods nothing. Jobs that wait for their first announcement have no score; the others are ordered
-- by their last one: those whose announcement is oldest come first, and each is announced in turn.
local reannounced = 0
for _, queue in ipairs(redis.call('SMEMBERS', QUEUES)) do
  announce_next(queue, now) -- messages that were no jobs, or of jobs long gone, made room
  local announced = redis.call('ZCOUNT', queued_key(queue), '-inf', '(+inf')
  local missing = math.min(announced - redis.call('LLEN', queue), limit)
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

-- Redis has deleted these records: their index entries go too.
local gone = redis.call('ZRANGEBYSCORE', EXPIRING, '-inf', now, 'LIMIT', 0, limit)
for _, entry in ipairs(gone) do
  local id, state, labels = read_expiring_entry(entry)
  local f = redis.call('HMGET', job_key(id), 'state', 'tags', 'tenant', 'enqueued_at_ms')
  local own = f[1] and { tags = f[2] or nil, tenant = f[3] or nil }
  local ttl_ms = redis.call('PTTL', job_key(id))
  if ttl_ms > 0 and entry == expiring_entry(id, f[1], own) then
    redis.call('ZADD', EXPIRING, now + ttl_ms, entry) -- kept longer by hand
  else
    unindex_job(id, state, labels)
    redis.call('ZREM', EXPIRING, entry)
    -- An id that was used again (a Celery task's, delivered once more) keeps those of its record.
    if own then index_job(id, f[1], own, f[4]) end
  end
end

redis.call('ZREMRANGEBYSCORE', DEAD, '-inf', now - DEAD_TTL_MS)
return {
  counts.REQUEUED, counts.DEAD, counts.CANCELLED, counts.EXPIRED, reannounced, #gone,
}
