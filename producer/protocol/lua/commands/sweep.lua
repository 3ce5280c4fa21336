-- Repair what dead processes left behind: lost leases, passed deadlines, unfinished batches, lost announcements,
-- expired index entries and malformed records.
-- KEYS: none. ARGV: limit (jobs per kind and call), reannounce_grace_ms, then sweep_interval_ms and extension_ms of the
-- sweeping worker (older workers send neither).
-- Reply: {requeued, dead, cancelled, expired, reannounced, unindexed, recounted, extended}.
-- @include announce, batches, dead_letters, finish, guard, index, keys, record, recount, server, unusable
allow_writes_when_full()
local limit, grace_ms, now = tonumber(ARGV[1]), tonumber(ARGV[2]), now_ms()
local interval_ms, extension_ms = tonumber(ARGV[3] or nil), tonumber(ARGV[4] or nil)
local counts = { REQUEUED = 0, DEAD = 0, CANCELLED = 0, EXPIRED = 0, NONE = 0 }

announce_due_jobs(limit, now)

-- If no worker swept for several intervals, Redis was away or its clock jumped, and healthy holders could not
-- renew either. Each lease that lapsed meanwhile is extended instead of being taken.
local num_extended = 0
local ok, last = pcall(redis.call, 'GET', LAST_SWEEP)
local gap_ms = ok and tonumber(last or nil) and now - tonumber(last) or 0
if interval_ms and extension_ms and gap_ms > 3 * interval_ms + 1000 then
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', LEASES, '-inf', now)) do
    redis.call('ZADD', LEASES, now + extension_ms, id)
    num_extended = num_extended + 1
  end
end
redis.call('SET', LAST_SWEEP, now, 'EX', 86400)

for _, id in ipairs(redis.call('ZRANGEBYSCORE', LEASES, '-inf', now, 'LIMIT', 0, limit)) do
  local outcome = guard_job(id, 'DEAD', function()
    local job = load_job(id)
    if job and job.state == 'in_progress' then return requeue_job(id, job, 'lease_expired', now) end
    redis.call('ZREM', LEASES, id) -- a record deleted by hand must not stop the sweep of all others
    return 'NONE'
  end)
  counts[outcome] = counts[outcome] + 1
end

for _, id in ipairs(redis.call('ZRANGEBYSCORE', DEADLINES, '-inf', now, 'LIMIT', 0, limit)) do
  local outcome = guard_job(id, 'DEAD', function()
    local job = load_job(id)
    if not job or job.state ~= 'queued' then
      redis.call('ZREM', DEADLINES, id)
      return 'NONE'
    end
    expire_job(id, job, now)
    return 'EXPIRED'
  end)
  counts[outcome] = counts[outcome] + 1
end

local function cancel_page_of_batch(id)
  local start = tonumber(redis.call('HGET', batch_key(id), 'num_swept') or 0)
  local ids = redis.call('ZRANGE', batch_jobs_key(id), start, start + limit - 1)
  redis.call('ZREM', BATCHES_DUE, id)
  if #ids == limit then redis.call('ZADD', BATCHES_DUE, now, id) end
  redis.call('HSET', batch_key(id), 'num_swept', start + #ids)
  for _, job_id in ipairs(ids) do
    guard_job(job_id, nil, function()
      local job = load_job(job_id)
      if job and request_cancel(job_id, job, now) == 'CANCELLED' then
        counts.CANCELLED = counts.CANCELLED + 1
      end
    end)
  end
end

-- A batch is due if it is being cancelled, is idle, has passed its deadline or has lost its record.
local function sweep_batch(id)
  local batch = load_batch(id)
  local kind = redis.call('TYPE', batch_jobs_key(id)).ok
  if not batch then
    redis.call('ZREM', BATCHES_DUE, id)
    redis.call('ZREM', BATCHES, id)
    redis.call('UNLINK', batch_jobs_key(id)) -- expired with the record, unless that was deleted by hand
  elseif not TERMINAL[batch.state] and kind ~= 'zset' and kind ~= 'none' then
    redis.call('ZREM', BATCHES_DUE, id) -- forged: it must not stop the sweep of all others
  elseif batch.state == 'cancelling' then
    cancel_page_of_batch(id)
  elseif batch.state == 'validating' and batch.deadline_at_ms and batch.deadline_at_ms <= now then
    redis.call('HSET', batch_key(id), 'total', redis.call('ZCARD', batch_jobs_key(id)),
      'state', 'in_progress', 'is_late', '1')
    redis.call('ZREM', BATCHES_DUE, id)
    finish_batch_if_done(id, now) -- otherwise it ends when its last job has expired
  elseif batch.state == 'validating' then
    local text = error_json('batch_abandoned', 'no line arrived for 24 hours, and the batch was not sealed')
    start_batch_cancellation(id, text, now)
  end
end

for _, id in ipairs(redis.call('ZRANGEBYSCORE', BATCHES_DUE, '-inf', now, 'LIMIT', 0, 10)) do
  sweep_batch(id)
  if counts.CANCELLED >= limit then break end -- the others are still due, for the next call
end

-- A queue never gets more messages than it has announced jobs, so a long outage of all workers floods nothing. Jobs
-- that wait for their first announcement have an infinite score. The others are ordered by their last announcement,
-- oldest first, so all of them are announced again in time.
local reannounced = 0
local function reannounce(queue)
  fill_window(queue, now) -- taken messages that named no waiting job have made room
  local announced = redis.call('ZCOUNT', queued_key(queue), '-inf', '(+inf')
  local missing = math.min(announced - redis.call('LLEN', queue), limit)
  if missing <= 0 then return end
  local ids = redis.call('ZRANGEBYSCORE', queued_key(queue), '-inf', now - grace_ms, 'LIMIT', 0,
    missing)
  for i = #ids, 1, -1 do -- the oldest last: it ends up first in the queue
    reannounced = reannounced + guard_job(ids[i], 0, function()
      if redis.call('EXISTS', job_key(ids[i])) == 1 then
        announce_job(ids[i], queue, true, now)
        return 1
      end
      redis.call('ZREM', queued_key(queue), ids[i])
      return 0
    end)
  end
end
-- The set may name a key of another type, which batchmill did not write: it must not stop the others.
for _, queue in ipairs(redis.call('SMEMBERS', QUEUES)) do pcall(reannounce, queue) end

-- Remove the index entries of a record that Redis has deleted.
local function drop_entry(entry)
  local id, state, labels = parse_expiring_entry(entry)
  local f = redis.call('HMGET', job_key(id), 'state', 'tags', 'tenant', 'enqueued_at_ms')
  local own = f[1] and { tags = f[2] or nil, tenant = f[3] or nil }
  local ttl_ms = redis.call('PTTL', job_key(id))
  -- 0 is the record's last millisecond: the next sweep finds it gone. It must not be indexed again here.
  if ttl_ms >= 0 and entry == expiring_entry(id, f[1], own) then
    redis.call('ZADD', EXPIRING, now + ttl_ms, entry) -- kept longer by hand
  else
    unindex_job(id, state, labels)
    redis.call('ZREM', EXPIRING, entry)
    -- An id that is in use again (of a Celery task that was delivered again) keeps the entries of its new record.
    if own then index_job(id, f[1], own, f[4]) end
  end
end
local gone = redis.call('ZRANGEBYSCORE', EXPIRING, '-inf', now, 'LIMIT', 0, limit)
for _, entry in ipairs(gone) do
  if not pcall(drop_entry, entry) then redis.call('ZREM', EXPIRING, entry) end
end

local num_failed = fail_unusable_jobs(limit, now) -- marked above, or by another script
-- How much such records added to the counters is unknown, as it is for records deleted by hand.
local num_recounted = recount_usage(num_failed > 0, limit, now)
redis.call('ZREMRANGEBYSCORE', DEAD, '-inf', now - DEAD_TTL_MS)
return {
  counts.REQUEUED, counts.DEAD, counts.CANCELLED, counts.EXPIRED, reannounced, #gone,
  num_recounted, num_extended,
}
