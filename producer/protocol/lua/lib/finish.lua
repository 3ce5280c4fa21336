-- Ending a job, and putting it back into its queue.
-- @include announce, batches, dead_letters, events, fair_share, index, keys, record, usage

local CRASH_LIMIT = 3 -- engine deaths while the job ran alone, after which it fails
local LOST_LEASE_LIMIT = 3 -- lost leases in a row without progress, from which on each counts like an engine death
local PROGRESS_TOKENS = 64 -- new tokens since the last loss that clear a job of suspicion

-- Move a job to a terminal state. This is the only way there: state, result, index entries, webhook event, TTLs,
-- counters and the wake-up of waiting clients change in one script. `num_tokens` is the real cost, prompt and output;
-- nil counts the stored output only.
local function finish_job(id, job, state, result, error_text, now, num_tokens)
  redis.call('ZREM', LEASES, id)
  local was_announced = job.state == 'queued' and leave_queue(id, job)
  if was_announced then withdraw_announcement(id, job.queue) end
  redis.call('ZREM', DEADLINES, id)
  settle_charge(id, job, num_tokens or redis.call('STRLEN', tokens_key(id)) / 4)
  redis.call('HSET', job_key(id), 'state', state, 'finished_at_ms', now)
  if result ~= '' then redis.call('HSET', job_key(id), 'result', result) end
  if error_text ~= '' then redis.call('HSET', job_key(id), 'error', error_text) end
  supersede_event(job.output_event)
  if wants_event(job, state) then add_event(id, job, state, run_suffix(job.run), '', now) end
  move_state_entry(id, job.state, state, now)
  redis.call('ZADD', EXPIRING, now + job.result_ttl_ms, expiring_entry(id, state, job))
  redis.call('PEXPIRE', job_key(id), job.result_ttl_ms)
  redis.call('PEXPIRE', tokens_key(id), job.result_ttl_ms)
  if result ~= '' then
    redis.call('DEL', text_key(id)) -- the result contains all of it
  else
    redis.call('PEXPIRE', text_key(id), job.result_ttl_ms)
  end
  count_end_in_batch(id, state, now)
  if job.idempotency_key then
    redis.call('PEXPIRE', idempotency_key(job.idempotency_key), job.result_ttl_ms)
  end
  -- A Celery client waits for this result; the process that ended the job may have no Celery, or may die first.
  if is_celery_task(id, job) then redis.call('ZADD', CELERY_ENDS, now, id) end
  redis.call('HINCRBY', TOTALS, state, 1)
  redis.call('PUBLISH', events_channel(id), '{"state":"' .. state .. '"}')
  if was_announced then fill_window(job.queue, now) end
end

local function cancel_job(id, job, now)
  finish_job(id, job, 'cancelled', '', error_json('cancelled', 'the job was cancelled'), now)
end

-- Cancel a waiting job at once. A running job is stopped by its worker, at the next checkpoint.
local function request_cancel(id, job, now)
  if TERMINAL[job.state] then return 'ALREADY_TERMINAL' end
  if job.state == 'in_progress' then
    redis.call('HSET', job_key(id), 'cancel_requested', '1')
    return 'CANCELLING'
  end
  cancel_job(id, job, now)
  return 'CANCELLED'
end

local function expire_job(id, job, now)
  local text = error_json('deadline_exceeded', 'the deadline passed before the job was done')
  finish_job(id, job, 'expired', '', text, now)
end

local function fail_crashed_job(id, job, cause, now)
  local message = 'the engine died ' .. CRASH_LIMIT .. ' times while it ran this job alone'
  if cause == 'lease_expired' then
    message = 'the job lost its worker ' .. redis.call('HGET', job_key(id), 'lost_leases')
      .. ' times without progress, at last ' .. CRASH_LIMIT .. ' times while it ran alone'
  end
  local document = redis.call('HGET', job_key(id), 'doc')
  add_dead_letter(id, 'job', 'attempts_exhausted', document, job.owner, now)
  finish_job(id, job, 'failed', '', error_json('attempts_exhausted', message), now)
end

-- Count the loss of a job's engine or of its lease, and return how often the job crashed while it ran alone. An engine
-- death counts as a crash only if the job ran alone; otherwise the job becomes a suspect. A lost lease says nothing
-- about the job: its worker was killed, stopped, or cut off. Only a job that loses its workers again and again without
-- progress is treated as one whose engine died. Progress since the last loss clears a job.
local function count_loss(id, job, cause)
  local num_tokens = redis.call('STRLEN', tokens_key(id)) / 4
  local num_at_loss = tonumber(redis.call('HGET', job_key(id), 'tokens_at_loss') or nil) or 0
  if num_tokens - num_at_loss >= PROGRESS_TOKENS then
    redis.call('HDEL', job_key(id), 'suspect', 'crashes', 'lost_leases')
  end
  redis.call('HSET', job_key(id), 'tokens_at_loss', num_tokens)
  if cause == 'lease_expired'
    and redis.call('HINCRBY', job_key(id), 'lost_leases', 1) < LOST_LEASE_LIMIT then
    return 0
  end
  return redis.call('HINCRBY', job_key(id), job.alone and 'crashes' or 'suspect', 1)
end

-- Put a job that is in progress back into its queue, or end it if it must not run again. The cause is `drain`,
-- `engine_death` or `lease_expired`.
local function requeue_job(id, job, cause, now)
  redis.call('ZREM', LEASES, id)
  local crashes = cause == 'drain' and 0 or count_loss(id, job, cause)
  if job.cancel_requested then
    cancel_job(id, job, now)
    return 'CANCELLED'
  end
  if job.alone and crashes >= CRASH_LIMIT then
    fail_crashed_job(id, job, cause, now)
    return 'DEAD'
  end
  if job.deadline_at_ms and job.deadline_at_ms <= now then
    expire_job(id, job, now)
    return 'EXPIRED'
  end
  redis.call('HSET', job_key(id), 'state', 'queued')
  redis.call('HDEL', job_key(id), 'owner')
  move_state_entry(id, job.state, 'queued', now)
  if job.deadline_at_ms then redis.call('ZADD', DEADLINES, job.deadline_at_ms, id) end
  count_stored_job(id, job, 1)
  announce_job(id, job.queue, true, now)
  return 'REQUEUED'
end
