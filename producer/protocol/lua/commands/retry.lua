-- Run a job again that ended without completing, from the tokens that it has.
-- KEYS: none. ARGV: id, nonce (unique per call), then alternating names and values of the limits that `submit` takes.
-- Reply: {RETRIED, run}, {UNKNOWN}, {COMPLETED}, {ACTIVE, state} or {FULL, limit's name, value, limit, queue, tenant}.
-- @include announce, batches, dead_letters, events, fair_share, index, keys, queue_limits, record, server, usage
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
local refusal = reached_limit(job.queue, job.tenant, limits, load_usage(job.tenant))
if refusal then
  refusal[5], refusal[6] = job.queue, job.tenant
  return refusal
end

local now = now_ms()
-- Delete what the end has set. The tokens stay: a claim with the same identity continues from them. So do fence and
-- attempts, which only grow.
redis.call('HDEL', job_key(id), 'result', 'error', 'finished_at_ms', 'started_at_ms', 'owner',
  'completed_fence', 'cancel_requested', 'suspect', 'alone', 'crashes', 'lost_leases',
  'tokens_at_loss', 'claim_nonce', 'not_before_ms')
redis.call('HSET', job_key(id), 'state', 'queued', 'enqueued_at_ms', now, 'retry_nonce', nonce,
  'run', job.run + 1)
for _, key in ipairs({ job_key(id), tokens_key(id), text_key(id) }) do redis.call('PERSIST', key) end
if job.idempotency_key then redis.call('PERSIST', idempotency_key(job.idempotency_key)) end
redis.call('ZREM', EXPIRING, expiring_entry(id, job.state, job))
if job.deadline_at_ms and job.deadline_at_ms > now then
  redis.call('ZADD', DEADLINES, job.deadline_at_ms, id)
else
  redis.call('HDEL', job_key(id), 'deadline_at_ms') -- a deadline in the past would end the job at once
end
move_state_entry(id, job.state, 'queued', now)
uncount_end_in_batch(id)
-- The event of the old end could arrive after that of the new one.
supersede_event('evt_' .. id .. '_' .. job.state .. run_suffix(job.run))
delete_dead_letter(id)
redis.call('HINCRBY', TOTALS, 'retried', 1)
count_stored_job(id, job, 1)
add_to_backlog(id, job, now_us())
fill_window(job.queue, now)
redis.call('PUBLISH', events_channel(id), '{"state":"queued"}')
return { 'RETRIED', job.run + 1 }
