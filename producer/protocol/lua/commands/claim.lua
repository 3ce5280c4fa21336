-- ARGV: id, owner, lease_ms, identity, nonce (one a call), supported versions...
-- Answers {CLAIMED, fence, document, token bytes, attempts, alone, deadline_at_ms, enqueued_at_ms,
-- started_at_ms, now, suspect, celery_result} or {REFUSED, why}.
write_even_when_full()
local id, owner, lease_ms, identity, nonce = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4], ARGV[5]

local function claimed(fence, attempts, alone, deadline_at_ms, now)
  local f = redis.call('HMGET', job_key(id), 'doc', 'enqueued_at_ms', 'started_at_ms', 'suspect',
    'celery_result')
  local tokens = redis.call('GET', tokens_key(id)) or ''
  if not (f[1] and tonumber(f[2]) and tonumber(f[3])) or #tokens % 4 > 0 then
    error('doc, enqueued_at_ms, started_at_ms or the tokens are no such thing', 0)
  end
  return {
    'CLAIMED', fence, f[1], tokens, attempts, alone and 1 or 0,
    deadline_at_ms or '', tonumber(f[2]), tonumber(f[3]), now, tonumber(f[4] or 0),
    f[5] == '1' and 1 or 0,
  }
end

local function claim()
  local job = load_job(id)
  if not job then return { 'REFUSED', 'unknown' } end
  local now = now_ms()

  -- The message is gone from the queue's list, whatever it was: there is room for another.
  local function refuse(why)
    announce_next(job.queue, now)
    return { 'REFUSED', why }
  end

  if TERMINAL[job.state] then return refuse('terminal') end
  if job.state ~= 'queued' then
    -- The same call again, sent by the connection's own retry because the first answer was lost.
    local f = redis.call('HMGET', job_key(id), 'claim_nonce', 'attempts')
    if f[1] == nonce then
      return claimed(job.fence, tonumber(f[2]), job.alone, job.deadline_at_ms, now)
    end
    return refuse('leased')
  end
  local supported = false
  for i = 6, #ARGV do supported = supported or ARGV[i] == job.v end
  if not supported then return refuse('unsupported_version') end
  if redis.call('ZSCORE', SCHEDULED, id) then return refuse('scheduled') end
  if job.deadline_at_ms and job.deadline_at_ms <= now then
    expire(id, job, now)
    return { 'REFUSED', 'expired' }
  end

  index_state(id, 'queued', 'in_progress', now)
  leave_queue(id, job)
  charge(id, job) -- of a job that nobody announced
  announce_next(job.queue, now)
  redis.call('ZREM', DEADLINES, id) -- from here on the worker watches the deadline
  redis.call('ZADD', LEASES, now + lease_ms, id)
  local fence = redis.call('HINCRBY', job_key(id), 'fence', 1)
  local attempts = redis.call('HINCRBY', job_key(id), 'attempts', 1)
  local known = redis.call('HMGET', job_key(id), 'identity', 'suspect')
  local alone = tonumber(known[2] or 0) >= SUSPECT_LIMIT
  local is_first = redis.call('HSETNX', job_key(id), 'started_at_ms', now) == 1
  if is_first and wants_event(job, 'started') then
    add_event(id, job, 'started', run_suffix(job.run), '', now)
  end
  redis.call('HSET', job_key(id), 'state', 'in_progress', 'owner', owner, 'identity', identity,
    'alone', alone and '1' or '0', 'claim_nonce', nonce)
  if known[1] and known[1] ~= identity and redis.call('DEL', tokens_key(id)) == 1 then
    -- Tells readers of the stream that it starts over.
    redis.call('HINCRBY', job_key(id), 'restarts', 1)
    redis.call('HDEL', job_key(id), 'output_told')
    redis.call('DEL', text_key(id))
  end
  redis.call('PUBLISH', channel(id), '{"state":"in_progress"}')
  return claimed(fence, attempts, alone, job.deadline_at_ms, now)
end
return guarded(id, { 'REFUSED', 'unusable' }, claim)
