-- Repair what dead processes left behind: lost leases, passed deadlines, unfinished batches, lost announcements and
-- expired index entries. `repair_store` follows it.
-- KEYS: none. ARGV: limit (jobs per kind and call), reannounce_grace_ms, then sweep_interval_ms and extension_ms of the
-- sweeping worker, max_letters (the oldest dead letters beyond it are dropped) and usage_days (for which used tokens
-- are kept). Each but the first two may be ''.
-- Reply: {requeued, dead, cancelled, expired, reannounced, unindexed, extended, entries of backlogs dropped, letters
-- dropped, time of Redis in ms, keys of another type that were deleted...}.
-- @include announce, batches, dead_letters, finish, foreign_keys, guard, index, keys, leftovers, lost_announcements
-- @include media, record, server, used_tokens
delete_foreign_keys()
allow_writes_when_full()
local redis_ms = keep_time()
local limit, grace_ms, now = tonumber(ARGV[1]), tonumber(ARGV[2]), now_ms()
local counts = { REQUEUED = 0, DEAD = 0, CANCELLED = 0, EXPIRED = 0, NONE = 0 }

announce_due_jobs(limit, now)

-- If no worker swept for several intervals, Redis was away or its clock jumped, and healthy holders could not
-- renew either. Each lease that lapsed meanwhile is extended instead of being taken. Return how many.
local function extend_lapsed_leases()
  local interval_ms, extension_ms = tonumber(ARGV[3] or nil), tonumber(ARGV[4] or nil)
  local ok, last = pcall(redis.call, 'GET', LAST_SWEEP)
  local gap_ms = ok and tonumber(last or nil) and now - tonumber(last) or 0
  if not (interval_ms and extension_ms and gap_ms > 3 * interval_ms + 1000) then return 0 end
  local lapsed = redis.call('ZRANGEBYSCORE', LEASES, '-inf', now)
  for _, id in ipairs(lapsed) do redis.call('ZADD', LEASES, now + extension_ms, id) end
  return #lapsed
end
local num_extended = extend_lapsed_leases()
redis.call('SET', LAST_SWEEP, now) -- without a TTL, which would end if the clock jumps

for _, id in ipairs(redis.call('ZRANGEBYSCORE', LEASES, '-inf', now, 'LIMIT', 0, limit)) do
  local outcome = guard_job(id, 'DEAD', function()
    local job = load_job(id)
    if job and job.state == 'in_progress' then return requeue_job(id, job, 'lease_expired', now) end
    redis.call('ZREM', LEASES, id) -- a record deleted by hand must not stop the sweep of all others
    if not job then redis.call('ZREM', state_index_key('in_progress'), id) end
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
  redis.call('ZADD', BATCHES_DUE, #ids == limit and now or now + BATCH_CHECK_MS, id)
  redis.call('HSET', batch_key(id), 'num_swept', start + #ids)
  for _, job_id in ipairs(ids) do
    guard_job(job_id, nil, function()
      local job = load_job(job_id)
      if job and request_cancel(job_id, job, now) == 'CANCELLED' then
        counts.CANCELLED = counts.CANCELLED + 1
      end
    end)
  end
  if #ids == limit or redis.call('HGET', batch_key(id), 'state') ~= 'cancelling' then return end
  check_batch_records(id, limit, now)
end

-- A batch is due if it is being cancelled, is idle, has passed its deadline, has lost its record or may have lost some
-- of its jobs.
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
    redis.call('ZADD', BATCHES_DUE, now + BATCH_CHECK_MS, id)
    finish_batch_if_done(id, now) -- otherwise it ends when its last job has expired
  elseif batch.state == 'validating' then
    local text = error_json('batch_abandoned', 'no line arrived for 24 hours, and the batch was not sealed')
    start_batch_cancellation(id, text, now)
  elseif batch.state == 'in_progress' then
    check_batch_records(id, limit, now)
  end
end

for _, id in ipairs(redis.call('ZRANGEBYSCORE', BATCHES_DUE, '-inf', now, 'LIMIT', 0, 10)) do
  sweep_batch(id)
  if counts.CANCELLED >= limit then break end -- the others are still due, for the next call
end

local reannounced = reannounce_lost(grace_ms, limit, now)

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

do -- a block, because a script may have only 200 local variables
  local gone = redis.call('ZRANGEBYSCORE', EXPIRING, '-inf', now, 'LIMIT', 0, limit)
  for _, entry in ipairs(gone) do
    if not pcall(drop_entry, entry) then redis.call('ZREM', EXPIRING, entry) end
  end

  local usage_days = tonumber(ARGV[6] or nil)
  if usage_days then -- forget the used tokens of days before the last ones, today included
    local first = math.floor(now / DAY_MS) - usage_days + 1
    for _, day in ipairs(redis.call('ZRANGEBYSCORE', USED_TOKENS, '-inf', '(' .. first, 'LIMIT', 0, MAX_DAYS)) do
      redis.call('UNLINK', used_tokens_key(day))
      redis.call('ZREM', USED_TOKENS, day)
    end
  end

  local num_leftovers = drop_expired_leftovers(limit, now)
  num_leftovers = math.max(num_leftovers, sweep_media(limit, now))

  redis.call('ZREMRANGEBYSCORE', DEAD, '-inf', now - DEAD_TTL_MS)
  local max_letters = tonumber(ARGV[5] or nil)
  local num_letters = max_letters and drop_excess_letters(max_letters, limit) or 0
  return {
    counts.REQUEUED, counts.DEAD, counts.CANCELLED, counts.EXPIRED, reannounced, math.max(#gone, num_leftovers),
    num_extended, num_dropped, num_letters, redis_ms, unpack(deleted_keys),
  }
end
