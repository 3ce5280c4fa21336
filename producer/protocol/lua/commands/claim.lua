-- Give a queued job to a worker, under a lease and a new fence.
-- KEYS: none. ARGV: id, owner, lease_ms, identity, nonce (unique per call), supported versions...
-- Reply: {CLAIMED, fence, document, token bytes, attempts, alone, deadline_at_ms, enqueued_at_ms, started_at_ms, now,
-- suspect, celery_result} or {REFUSED, reason}.
-- @include announce, events, fair_share, finish, guard, index, keys, record, server
allow_writes_when_full()
local SUSPECT_LIMIT = 3 -- engine deaths beside other jobs, after which a job runs alone
local id, owner, lease_ms, identity, nonce = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4], ARGV[5]

local function claim_reply(fence, attempts, alone, deadline_at_ms, now)
  local f = redis.call('HMGET', job_key(id), 'doc', 'enqueued_at_ms', 'started_at_ms', 'suspect',
    'celery_result')
  local tokens = redis.call('GET', tokens_key(id)) or ''
  if not (f[1] and tonumber(f[2]) and tonumber(f[3])) or #tokens % 4 > 0 then
    error('doc, enqueued_at_ms, started_at_ms or the tokens are missing or wrong', 0)
  end
  return {
    'CLAIMED', fence, f[1], tokens, attempts, alone and 1 or 0,
    deadline_at_ms or '', tonumber(f[2]), tonumber(f[3]), now, tonumber(f[4] or 0),
    f[5] == '1' and 1 or 0,
  }
end

local function claim_job()
  local job = load_job(id)
  if not job then return { 'REFUSED', 'unknown' } end
  local now = now_ms()

  -- The message is gone from the queue's list in any case, which makes room for another.
  local function refuse(reason)
    fill_window(job.queue, now)
    return { 'REFUSED', reason }
  end

  if TERMINAL[job.state] then return refuse('terminal') end
  if job.state ~= 'queued' then
    -- The same nonce: the connection repeated the call because the first reply was lost.
    local f = redis.call('HMGET', job_key(id), 'claim_nonce', 'attempts')
    if f[1] == nonce then
      return claim_reply(job.fence, tonumber(f[2]), job.alone, job.deadline_at_ms, now)
    end
    return refuse('leased')
  end
  local supported = false
  for i = 6, #ARGV do supported = supported or ARGV[i] == job.v end
  if not supported then return refuse('unsupported_version') end
  if redis.call('ZSCORE', SCHEDULED, id) then return refuse('scheduled') end
  if job.deadline_at_ms and job.deadline_at_ms <= now then
    expire_job(id, job, now)
    return { 'REFUSED', 'expired' }
  end

  move_state_entry(id, 'queued', 'in_progress', now)
  leave_queue(id, job)
  charge_tenant(id, job) -- unless its announcement did so
  fill_window(job.queue, now)
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
    -- Readers of the stream see from this counter that the output starts over.
    redis.call('HINCRBY', job_key(id), 'restarts', 1)
    redis.call('HDEL', job_key(id), 'output_told')
    redis.call('DEL', text_key(id))
  end
  redis.call('PUBLISH', events_channel(id), '{"state":"in_progress"}')
  return claim_reply(fence, attempts, alone, job.deadline_at_ms, now)
end
return guard_job(id, { 'REFUSED', 'unusable' }, claim_job)
