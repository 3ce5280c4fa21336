-- Ending jobs whose keys are malformed, for the sweep: such a job is removed from every index, fails, and is kept as a
-- dead letter.
-- @include batches, dead_letters, fair_share, finish, foreign_keys, guard, index, keys, leftovers, queues, record
-- @include usage

local MAX_SEARCHED_QUEUES = 500 -- for a job whose record does not name its queue

local function fail_unusable_job(id, reason, now)
  local is_hash = redis.call('TYPE', job_key(id)).ok == 'hash'
  local f = is_hash and redis.call('HMGET', job_key(id), 'doc', 'tenant', 'tags', 'cost', 'queue',
    'charge', 'celery_result', 'history', 'webhook', 'idempotency_key') or {}
  add_dead_letter(id, 'job', 'unusable_record: ' .. reason, f[1] or '', '', now, f[8])
  local text = error_json('unusable_record', 'a key of the job holds data that batchmill did not write')
  for _, key in ipairs({ tokens_key(id), text_key(id), thoughts_key(id) }) do
    -- Not output, and it would stop `finish_job`.
    delete_unless('string', key)
  end
  delete_unless('hash', seals_key(id))
  if not pcall(function() finish_job(id, read_valid_job(id), 'failed', '', text, now) end) then
    for _, index in ipairs({ LEASES, DEADLINES, SCHEDULED }) do redis.call('ZREM', index, id) end
    local job = { tenant = f[2] or DEFAULT_TENANT, cost = tonumber(f[4] or nil) }
    for _, queue in ipairs(f[5] and { f[5] } or next_queues(MAX_SEARCHED_QUEUES)) do
      redis.call('ZREM', backlog_key(queue, job.tenant), id)
      drop_tenant_if_idle(queue, job.tenant)
      -- The name may be forged, and its key of another type. The sweep recounts what the job added to the counters.
      redis.pcall('ZREM', queued_key(queue), id)
    end
    if is_hash then
      job.queue, job.charge = f[5], tonumber(f[6] or nil)
      pcall(settle_charge, id, job, 0)
      pcall(count_end_in_batch, id, {}, 'failed', now)
      redis.call('HSET', job_key(id), 'state', 'failed', 'finished_at_ms', now, 'error', text)
      local labels = { tenant = f[2] or nil, tags = f[3] or nil, webhook = f[9], idempotency_key = f[10] }
      if is_celery_task(id, { celery_result = f[7] == '1' }) then redis.call('ZADD', CELERY_ENDS, now, id) end
      redis.call('ZADD', state_index_key('failed'), now, id)
      keep_leftover(id, labels, 'failed', 0, now)
      redis.call('ZADD', EXPIRING, now + DEAD_TTL_MS, expiring_entry(id, 'failed', labels))
    end
    redis.call('PUBLISH', events_channel(id), '{"state":"failed"}')
  end
  write_usage()
  for _, state in ipairs(STATES) do
    if state ~= 'failed' or not is_hash then redis.call('ZREM', state_index_key(state), id) end
  end
  for _, key in ipairs({ job_key(id), tokens_key(id), text_key(id), thoughts_key(id), seals_key(id) }) do
    if redis.call('PTTL', key) == -1 then redis.call('PEXPIRE', key, DEAD_TTL_MS) end
  end
end

-- Fail the jobs that other scripts have marked with `mark_unusable`. Return how many there were.
local function fail_unusable_jobs(limit, now)
  delete_unless('hash', UNUSABLE)
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
