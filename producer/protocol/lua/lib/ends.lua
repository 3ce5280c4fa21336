-- The ends of a job, its way back into its queue, and what it appends on the way.

-- The one way into a terminal state: state, result, index removal, webhook event, TTLs, counters
-- and the wake-up of waiting clients, in one script. `num_tokens` is what it cost, prompt and output;
-- nil counts the output only.
local function finish(id, job, state, result, error_text, now, num_tokens)
  redis.call('ZREM', LEASES, id)
  local was_announced = job.state == 'queued' and leave_queue(id, job)
  if was_announced then take_back(id, job.queue) end
  redis.call('ZREM', DEADLINES, id)
  settle_charge(id, job, num_tokens or redis.call('STRLEN', tokens_key(id)) / 4)
  redis.call('HSET', job_key(id), 'state', state, 'finished_at_ms', now)
  if result ~= '' then redis.call('HSET', job_key(id), 'result', result) end
  if error_text ~= '' then redis.call('HSET', job_key(id), 'error', error_text) end
  supersede_event(job.output_event)
  if wants_event(job, state) then add_event(id, job, state, run_suffix(job.run), '', now) end
  index_state(id, job.state, state, now)
  redis.call('ZADD', EXPIRING, now + job.result_ttl_ms, expiring_entry(id, state, job))
  redis.call('PEXPIRE', job_key(id), job.result_ttl_ms)
  redis.call('PEXPIRE', tokens_key(id), job.result_ttl_ms)
  if result ~= '' then
    redis.call('DEL', text_key(id)) -- the result holds all of it
  else
    redis.call('PEXPIRE', text_key(id), job.result_ttl_ms)
  end
  count_in_batch(id, state, now)
  if job.idempotency_key then
    redis.call('PEXPIRE', idempotency_key(job.idempotency_key), job.result_ttl_ms)
  end
  -- Somebody waits for Celery's result, and who ended the job may have no Celery, or die first.
  if job.celery_result then redis.call('ZADD', CELERY_ENDS, now, id) end
  redis.call('HINCRBY', TOTALS, state, 1)
  redis.call('PUBLISH', channel(id), '{"state":"' .. state .. '"}')
  if was_announced then announce_next(job.queue, now) end
end

local function cancel(id, job, now)
  finish(id, job, 'cancelled', '', error_json('cancelled', 'the job was cancelled'), now)
end

-- At once where it waits; a running one is stopped by its worker, at its next checkpoint.
local function cancel_or_ask(id, job, now)
  if TERMINAL[job.state] then return 'ALREADY_TERMINAL' end
  if job.state == 'in_progress' then
    redis.call('HSET', job_key(id), 'cancel_requested', '1')
    return 'CANCELLING'
  end
  cancel(id, job, now)
  return 'CANCELLED'
end

local function expire(id, job, now)
  local text = error_json('deadline_exceeded', 'the deadline passed before the job was done')
  finish(id, job, 'expired', '', text, now)
end

local function give_up(id, job, now)
  local message = 'the engine died ' .. CRASH_LIMIT .. ' times while it ran this job alone'
  local document = redis.call('HGET', job_key(id), 'doc')
  add_dead_letter(id, 'job', 'attempts_exhausted', document, job.owner, now)
  finish(id, job, 'failed', '', error_json('attempts_exhausted', message), now)
end

-- in_progress -> queued, or to its end where nothing is left to wait for. Charges an engine death
-- to the job only where it ran alone; in company it becomes a suspect.
local function put_back(id, job, cause, now)
  redis.call('ZREM', LEASES, id)
  local crashes = 0
  if cause == 'engine_death' then
    crashes = redis.call('HINCRBY', job_key(id), job.alone and 'crashes' or 'suspect', 1)
  end
  if job.cancel_requested then
    cancel(id, job, now)
    return 'CANCELLED'
  end
  if job.alone and crashes >= CRASH_LIMIT then
    give_up(id, job, now)
    return 'DEAD'
  end
  if job.deadline_at_ms and job.deadline_at_ms <= now then
    expire(id, job, now)
    return 'EXPIRED'
  end
  redis.call('HSET', job_key(id), 'state', 'queued')
  redis.call('HDEL', job_key(id), 'owner')
  index_state(id, job.state, 'queued', now)
  if job.deadline_at_ms then redis.call('ZADD', DEADLINES, job.deadline_at_ms, id) end
  recount(id, job, 1)
  announce(id, job.queue, true, now)
  return 'REQUEUED'
end

-- Append text at a position (in bytes). Text that does not connect to, or disagrees with, what is
-- stored is left out: readers get it with the result, and never anything that has to be taken back.
local function append_text(id, position, text)
  local key = text_key(id)
  local stored = redis.call('STRLEN', key)
  if stored < position or stored >= position + #text then return end
  local overlap = ''
  if stored > position then overlap = redis.call('GETRANGE', key, position, stored - 1) end
  if overlap ~= string.sub(text, 1, #overlap) then return end
  redis.call('APPEND', key, string.sub(text, #overlap + 1))
end

-- Append tokens at a position (in bytes), so that a call repeated after a lost answer changes
-- nothing. false where the tokens do not connect to, or disagree with, what is stored.
local function append_tokens(id, position, bytes)
  local key = tokens_key(id)
  local stored = redis.call('STRLEN', key)
  if stored < position then return false end
  if stored > position and #bytes > 0 then
    local overlap = redis.call('GETRANGE', key, position, position + #bytes - 1)
    if overlap ~= string.sub(bytes, 1, #overlap) then return false end
    bytes = string.sub(bytes, #overlap + 1)
  end
  if #bytes > 0 then redis.call('APPEND', key, bytes) end
  return true
end
