-- Ending a job, and putting it back into its queue.
-- @include announce, batches, celery_state, counters, dead_letters, events, fair_share, history, idempotency, index
-- @include keys, leftovers, media, payloads, queues, receiver_events, record, server, usage, used_tokens

local CRASH_LIMIT = 3 -- engine deaths while the job ran alone, after which it fails
local LOST_SUSPECT_FROM = 3 -- lost workers in a row without a new token, from which on each makes the job a suspect
local LOST_LIMIT = 8 -- the same, after which a job that runs alone fails
local PROGRESS_TOKENS = 64 -- new tokens since the last loss that clear a job of suspicion
-- Causes that are not counted as a loss.
local BLAMELESS = { drain = true, not_started = true, moved = true, sliced = true }
-- Causes that say that the worker is gone, not that the job did it any harm.
local LOST_WORKER = { lease_expired = true, worker_lost = true }

-- Take a waiting job out of its queue because it ends. Return whether it was announced.
-- @rare
local function leave_queue_at_end(id, job)
  local was_announced = leave_queue(id, job)
  if was_announced then withdraw_announcement(id, job.queue) end
  return was_announced
end

-- Announce another job in the place of one that has ended without a claim.
-- @rare
local function announce_in_its_place(queue, now) fill_window(queue, now) end

-- Move a job to a terminal state. This is the only way there: state, result, index entries, webhook event, TTLs,
-- counters and the wake-up of waiting clients change in one script. `used` lists the tokens of the prompt, those of the
-- output, those of the prompt that were cached, and those of the output that are thoughts; nil counts the stored output
-- only. `fields` lists names and values that the record gets besides.
local function finish_job(id, job, state, result, error_text, now, used, fields)
  load_end_fields(id, job)
  redis.call('ZREM', LEASES, id)
  local was_announced = job.state == 'queued' and leave_queue_at_end(id, job)
  if job.state ~= 'in_progress' then redis.call('ZREM', DEADLINES, id) end -- its claim has removed it
  if not TERMINAL[job.state] then count_reservation(id, job, -1) end
  local output_bytes = job.output_bytes or redis.call('STRLEN', tokens_key(id))
  used = used or { 0, output_bytes / 4, 0, 0 }
  settle_charge(id, job, used[1] + used[2])
  fields = fields or {}
  local function put(name, value)
    fields[#fields + 1] = name
    fields[#fields + 1] = value
  end
  put('used_tokens', count_used_tokens(job, used, now))
  if result ~= '' then put('result', result) end
  if error_text ~= '' then put('error', error_text) end
  redis.call('HSET', job_key(id), 'state', state, 'finished_at_ms', now, unpack(fields))
  if job.plan_identity and state == 'completed' then discard_plan(id) end
  if job.output_event then supersede_event(job.output_event) end
  if wants_event(job, state) then add_event(id, job, state, run_suffix(job.run), '', now) end
  job.receiver_events = tell_receivers(id, job, state, now)
  move_state_entry(id, job, state, now)
  if job.webhook or job.receiver_events or (state == 'failed' and redis.call('EXISTS', dead_key(id)) == 1) then
    keep_leftover(id, job, state, tonumber(redis.call('HGET', job_key(id), 'output_events') or 0), now)
  end
  redis.call('ZADD', EXPIRING, now + job.result_ttl_ms, expiring_entry(id, state, job))
  redis.call('PEXPIRE', job_key(id), job.result_ttl_ms)
  if job.payloads then check_payloads(job, now + job.result_ttl_ms + 1) end
  if job.media then release_media(id, job, now) end
  if output_bytes > 0 then redis.call('PEXPIRE', tokens_key(id), job.result_ttl_ms) end
  if job.sealed_with then redis.call('PEXPIRE', seals_key(id), job.result_ttl_ms) end
  if result ~= '' then
    redis.call('DEL', text_key(id), thoughts_key(id)) -- the result contains all of it
  else
    redis.call('PEXPIRE', text_key(id), job.result_ttl_ms)
    redis.call('PEXPIRE', thoughts_key(id), job.result_ttl_ms)
  end
  if job.batch then count_end_in_batch(id, job, state, now) end
  keep_idempotency_entry(job, job.result_ttl_ms)
  -- A Celery client waits for this result; the process that ended the job may have no Celery, or may die first.
  if is_celery_task(id, job) then redis.call('ZADD', CELERY_ENDS, now, id) end
  increment(TOTALS, state, 1)
  redis.call('PUBLISH', events_channel(id), '{"state":"' .. state .. '"}')
  if was_announced then announce_in_its_place(job.queue, now) end
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

-- @rare
local function expire_job(id, job, now)
  local message = 'the deadline passed before the job was done'
  local start_by = tonumber(redis.call('HGET', job_key(id), 'start_by_ms') or nil)
  if start_by and start_by <= now then message = 'the Celery task expired before it started' end
  finish_job(id, job, 'expired', '', error_json('deadline_exceeded', message), now)
end

local function fail_exhausted_job(id, job, message, now)
  local f = redis.call('HMGET', job_key(id), 'doc', 'history')
  add_dead_letter(id, 'job', 'attempts_exhausted', f[1], job.owner, now, f[2])
  finish_job(id, job, 'failed', '', error_json('attempts_exhausted', message), now)
end

-- Forget old losses of a job that has moved since: a new token in the attempt that ends says that the job does not take
-- its workers down, and PROGRESS_TOKENS since the last loss clear it of everything.
local function note_progress(id)
  local num_tokens = redis.call('STRLEN', tokens_key(id)) / 4
  local f = redis.call('HMGET', job_key(id), 'tokens_at_loss', 'claimed_tokens')
  if num_tokens - (tonumber(f[1] or nil) or 0) >= PROGRESS_TOKENS then
    redis.call('HDEL', job_key(id), 'suspect', 'crashes', 'lost_leases')
  elseif num_tokens > (tonumber(f[2] or nil) or math.huge) then
    redis.call('HDEL', job_key(id), 'lost_leases')
  end
  redis.call('HSET', job_key(id), 'tokens_at_loss', num_tokens)
end

-- A lost worker says nothing about its jobs: it was killed, stopped, or cut off. Only a job that loses its workers
-- again and again without a new token must run alone, and fails in the end. Return why it fails, or nil.
local function count_lost_worker(id, job)
  local num_lost = redis.call('HINCRBY', job_key(id), 'lost_leases', 1)
  if num_lost >= LOST_SUSPECT_FROM and not job.alone then redis.call('HINCRBY', job_key(id), 'suspect', 1) end
  if num_lost >= LOST_LIMIT and job.alone then
    return 'the job lost its worker ' .. num_lost .. ' times without progress, at last while it ran alone'
  end
end

-- An engine death counts against a job only if the job ran alone; otherwise the job becomes a suspect. Return why it
-- fails, or nil.
local function count_engine_death(id, job)
  local count = redis.call('HINCRBY', job_key(id), job.alone and 'crashes' or 'suspect', 1)
  if job.alone and count >= CRASH_LIMIT then
    return 'the engine died or stood still ' .. count .. ' times while it ran this job alone'
  end
end

-- Count why an attempt was lost, if it says anything about the job. Return why the job fails, or nil.
local function count_loss(id, job, cause)
  if BLAMELESS[cause] then return nil end
  note_progress(id)
  if LOST_WORKER[cause] then return count_lost_worker(id, job) end
  return count_engine_death(id, job)
end

-- Announce a job that was given back at the head of its queue, or to one worker. A job that ended an engine alone lets
-- others go first: they need not wait for its next crashes, and a worker whose engine dies with each of them knows that
-- they are not at fault.
local function announce_again(id, job, cause, now, taker)
  local crashed_alone = job.alone and not BLAMELESS[cause] and not LOST_WORKER[cause]
  announce_job(id, job.queue, not crashed_alone, now, taker)
end

-- Let a job whose time slice is over wait behind the jobs of its tenant that wait already. Its charge stays, so its
-- tenant's turn comes as if it ran. `home` names the worker that still has its KV cache.
local function wait_for_next_slice(id, job, home, now)
  if home then redis.call('HSET', job_key(id), 'home', home) end
  -- A job of a lower Celery priority has a place in the future, which it keeps.
  local place = finite(redis.call('HGET', job_key(id), 'backlog_at_us'), 0)
  add_to_backlog(id, job, math.max(now_us(), place))
  fill_window(job.queue, now)
end

-- Put a job that is in progress back into its queue, or end it if it must not run again. The cause is `drain`,
-- `not_started`, `moved`, `sliced`, `engine_death`, `engine_stall`, `lease_expired` or `worker_lost`; the first four
-- say nothing about the job. With `taker`, the session of a worker, it is announced to that one only.
local function requeue_job(id, job, cause, now, taker)
  redis.call('ZREM', LEASES, id)
  redis.call('HSET', job_key(id), 'history', history_with_end(id, job, cause, nil, now))
  increment(TOTALS, 'attempts_' .. cause, 1)
  local reason = count_loss(id, job, cause)
  if job.cancel_requested then
    cancel_job(id, job, now)
    return 'CANCELLED'
  end
  if reason then
    fail_exhausted_job(id, job, reason, now)
    return 'DEAD'
  end
  if job.deadline_at_ms and job.deadline_at_ms <= now then
    expire_job(id, job, now)
    return 'EXPIRED'
  end
  local session = redis.call('HGET', job_key(id), 'session')
  redis.call('HSET', job_key(id), 'state', 'queued')
  redis.call('HDEL', job_key(id), 'owner', 'session')
  move_state_entry(id, job, 'queued', now)
  if job.deadline_at_ms then redis.call('ZADD', DEADLINES, job.deadline_at_ms, id) end
  count_stored_job(id, job, 1)
  count_queue_tokens(id, job, 1)
  register_queue(job.queue, now)
  if cause == 'sliced' then
    wait_for_next_slice(id, job, session, now)
  else
    announce_again(id, job, cause, now, taker)
  end
  show_celery_state(id, job, 'RETRY', celery_exception('JobReleased', cause, 'another attempt continues the job'))
  return 'REQUEUED'
end
