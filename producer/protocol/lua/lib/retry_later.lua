-- Another attempt of a job that has failed: it waits among the delayed jobs, and keeps its charge.
-- @include celery_state, counters, history, index, keys, output, queues, usage

-- Put a running job whose attempt failed back, to be announced at `due_at`. Nothing that reports an end happens: no
-- webhook event, no count in a batch, no result. The reason is kept until the next claim, which has another fence.
-- The next attempt continues from the tokens so far, unless it starts over.
-- @rare
local function retry_later(id, job, error_text, due_at, starts_over, now)
  redis.call('ZREM', LEASES, id)
  redis.call('HSET', job_key(id), 'state', 'queued', 'history',
    history_with_end(id, job, 'failed', error_code(error_text), now), 'not_before_ms', due_at,
    'retry_error', error_text, 'retry_fence', job.fence)
  redis.call('HINCRBY', job_key(id), 'retries', 1)
  if starts_over then discard_output(id) end
  redis.call('HDEL', job_key(id), 'owner', 'session')
  move_state_entry(id, job, 'queued', now)
  if job.deadline_at_ms then redis.call('ZADD', DEADLINES, job.deadline_at_ms, id) end
  count_stored_job(id, job, 1)
  register_queue(job.queue, now)
  redis.call('ZADD', queued_key(job.queue), '+inf', id)
  redis.call('ZADD', SCHEDULED, due_at, id)
  increment(TOTALS, 'attempts_failed', 1)
  redis.call('PUBLISH', events_channel(id), '{"state":"queued"}')
  local ok, reason = pcall(cjson.decode, error_text)
  if not ok or type(reason) ~= 'table' then reason = {} end
  local code, message = tostring(reason.code or 'internal_error'), tostring(reason.message or '')
  show_celery_state(id, job, 'RETRY', celery_exception('JobFailed', code, message))
end
