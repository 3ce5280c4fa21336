-- Ending jobs whose keys are malformed, for the sweep: such a job is removed from every index, fails, and is kept as a
-- dead letter.
-- @include batches, dead_letters, fair_share, finish, guard, index, keys, record, usage

local function fail_unusable_job(id, reason, now)
  local is_hash = redis.call('TYPE', job_key(id)).ok == 'hash'
  local f = is_hash and redis.call('HMGET', job_key(id), 'doc', 'tenant', 'tags', 'cost', 'queue',
    'charge', 'celery_result') or {}
  add_dead_letter(id, 'job', 'unusable_record: ' .. reason, f[1] or '', '', now)
  local text = error_json('unusable_record', 'a key of the job holds data that batchmill did not write')
  for _, key in ipairs({ tokens_key(id), text_key(id) }) do
    -- Not output, and it would stop `finish_job`.
    if redis.call('TYPE', key).ok ~= 'string' then redis.call('DEL', key) end
  end
  if not pcall(function() finish_job(id, read_valid_job(id), 'failed', '', text, now) end) then
    for _, index in ipairs({ LEASES, DEADLINES, SCHEDULED }) do redis.call('ZREM', index, id) end
    local job = { tenant = f[2] or DEFAULT_TENANT, cost = tonumber(f[4] or nil) }
    for _, queue in ipairs(redis.call('SMEMBERS', QUEUES)) do
      redis.call('ZREM', backlog_key(queue, job.tenant), id)
      drop_tenant_if_idle(queue, job.tenant)
      -- The set may name a key of another type, which batchmill did not write.
      if redis.pcall('ZREM', queued_key(queue), id) == 1 then count_stored_job(id, job, -1) end
    end
    if is_hash then
      job.queue, job.charge = f[5], tonumber(f[6] or nil)
      pcall(settle_charge, id, job, 0)
      pcall(count_end_in_batch, id, 'failed', now)
      redis.call('HSET', job_key(id), 'state', 'failed', 'finished_at_ms', now, 'error', text)
      local labels = { tenant = f[2] or nil, tags = f[3] or nil }
      if is_celery_task(id, { celery_result = f[7] == '1' }) then redis.call('ZADD', CELERY_ENDS, now, id) end
      redis.call('ZADD', state_index_key('failed'), now, id)
      redis.call('ZADD', EXPIRING, now + DEAD_TTL_MS, expiring_entry(id, 'failed', labels))
    end
    redis.call('PUBLISH', events_channel(id), '{"state":"failed"}')
  end
  for _, state in ipairs(STATES) do
    if state ~= 'failed' or not is_hash then redis.call('ZREM', state_index_key(state), id) end
  end
  for _, key in ipairs({ job_key(id), tokens_key(id), text_key(id) }) do
    if redis.call('PTTL', key) == -1 then redis.call('PEXPIRE', key, DEAD_TTL_MS) end
  end
end

-- Fail the jobs that other scripts have marked with `mark_unusable`. Return how many there were.
local function fail_unusable_jobs(limit, now)
  if redis.call('TYPE', UNUSABLE).ok ~= 'hash' then
    redis.call('DEL', UNUSABLE)
    return 0
  end
  local found = redis.call('HSCAN', UNUSABLE, 0, 'COUNT', limit)[2]
  local num_failed = 0
  for i = 1, #found, 2 do
    redis.call('HDEL', UNUSABLE, found[i])
    if not is_valid_job(found[i]) then
      fail_unusable_job(found[i], found[i + 1], now)
      num_failed = num_failed + 1
    end
  end
  return num_failed
end
