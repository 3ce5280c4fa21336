-- Run a job again that ended without completing, from the tokens that it has.
-- KEYS: none. ARGV: id, nonce (unique per call), then alternating names and values of the limits that `submit` takes.
-- Reply: {RETRIED, run}, {UNKNOWN}, {COMPLETED}, {ACTIVE, state} or {FULL, limit's name, value, limit, bytes
-- that the job needs itself, queue, tenant}.
-- @include announce, batches, celery_state, counters, dead_letters, events, fair_share, idempotency, index, keys
-- @include media, queue_limits, queues, receiver_events, record, server, usage
allow_writes_when_full()
local id, nonce, limits = ARGV[1], ARGV[2], {}
for i = 3, #ARGV, 2 do limits[ARGV[i]] = ARGV[i + 1] end
local job = load_job(id)
if not job then return { 'UNKNOWN' } end
if job.state == 'completed' then return { 'COMPLETED' } end
if not TERMINAL[job.state] then
  -- The same nonce: the connection repeated the call because the first reply was lost.
  if redis.call('HGET', job_key(id), 'retry_nonce') == nonce then return { 'RETRIED', job.run } end
  return { 'ACTIVE', job.state }
end
local now = now_ms()
local refusal = reached_limit(job.queue, job.tenant, limits, load_usage(job.tenant, job.queue), 0,
  job.reserved_bytes, now) or reached_outbox_limit(job.webhook, job.tenant, limits)
if refusal then
  refusal[6], refusal[7] = job.queue, job.tenant
  return refusal
end

-- Delete what the end has set. The tokens stay: a claim with the same identity continues from them. So do fence and
-- attempts, which only grow.
redis.call('HDEL', job_key(id), 'result', 'error', 'finished_at_ms', 'started_at_ms', 'owner',
  'completed_fence', 'cancel_requested', 'suspect', 'alone', 'crashes', 'lost_leases',
  'tokens_at_loss', 'claim_nonce', 'not_before_ms', 'start_by_ms', 'retries', 'retry_error', 'retry_fence')
redis.call('HSET', job_key(id), 'state', 'queued', 'enqueued_at_ms', now, 'retry_nonce', nonce,
  'run', job.run + 1)
for _, key in ipairs({ job_key(id), tokens_key(id), text_key(id), thoughts_key(id), seals_key(id) }) do
  redis.call('PERSIST', key)
end
keep_idempotency_entry(job, UNFINISHED_KEY_TTL_MS)
redis.call('ZREM', EXPIRING, expiring_entry(id, job.state, job))
if job.deadline_at_ms and job.deadline_at_ms > now then
  redis.call('ZADD', DEADLINES, job.deadline_at_ms, id)
else
  redis.call('HDEL', job_key(id), 'deadline_at_ms') -- a deadline in the past would end the job at once
end
move_state_entry(id, job, 'queued', now)
uncount_end_in_batch(id)
-- The event of the old end could arrive after that of the new one.
supersede_event('evt_' .. id .. '_' .. job.state .. run_suffix(job.run))
supersede_receiver_events(id)
delete_dead_letter(id)
increment(TOTALS, 'retried', 1)
if job.media then
  job.reserved_bytes = job.reserved_bytes + hold_media(id, job.media)
  redis.call('HSET', job_key(id), 'reserved_bytes', string.format('%.0f', job.reserved_bytes))
end
count_stored_job(id, job, 1)
count_queue_tokens(id, job, 1)
count_reservation(id, job, 1)
register_queue(job.queue, now)
add_to_backlog(id, job, now_us())
fill_window(job.queue, now)
write_usage()
redis.call('PUBLISH', events_channel(id), '{"state":"queued"}')
write_celery_state(id, job, 'RETRY', celery_exception('JobReleased', 'retried', 'the job runs again'))
return { 'RETRIED', job.run + 1 }
