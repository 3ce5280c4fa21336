-- Give a queued job to a worker, under a lease and a new fence.
-- KEYS: none. ARGV: id, owner, lease_ms, identity, nonce (unique per call), session, pid of the worker (for Celery),
-- ids of the worker's encryption keys (with spaces), prefixes that its engine holds (with spaces; '' = it does not look
-- for jobs with them), supported versions...
-- Reply: {CLAIMED, fence, document, token bytes, attempts, alone, deadline_at_ms, enqueued_at_ms, started_at_ms, now,
-- suspect, celery_result, retries, traceparent ('' = none), history (JSON, '' = none), claimed_at_ms (of the first
-- call with this nonce), prefix ('' = none), digest of its LoRA adapter ('' = none), seals of the output (names and
-- values)} or {REFUSED, reason}.
-- @include announce, celery_state, events, fair_share, finish, guard, index, keys, output, pauses, prefixes, record
-- @include sealed, server, sessions
allow_writes_when_full()
local MIN_REFUSAL_WAIT_MS = 1000 -- after the first refusal for the job's version, besides the sweep's grace
local MAX_REFUSAL_WAIT_MS = 600 * 1000
local MAX_KEY_WAIT_MS = 30 * 1000 -- the same, for a key that the worker lacks: another may have it
local SUSPECT_LIMIT = 3 -- engine deaths beside other jobs, after which a job runs alone
local id, owner, lease_ms, identity, nonce = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4], ARGV[5]
local session, pid = ARGV[6], tonumber(ARGV[7])

local function claim_reply(attempts, alone, deadline_at_ms, now)
  local f = redis.call('HMGET', job_key(id), 'doc', 'enqueued_at_ms', 'started_at_ms', 'suspect',
    'celery_result', 'fence', 'claim_nonce', 'retries', 'traceparent', 'history', 'claimed_at_ms', 'prefix',
    'lora')
  local tokens = redis.call('GET', tokens_key(id)) or ''
  if not (f[1] and tonumber(f[2]) and tonumber(f[3])) or #tokens % 4 > 0 then
    error('doc, enqueued_at_ms, started_at_ms or the tokens are missing or wrong', 0)
  end
  return {
    'CLAIMED', fence_text(f[6], f[7]), f[1], tokens, attempts, alone and 1 or 0,
    deadline_at_ms or '', tonumber(f[2]), tonumber(f[3]), now, tonumber(f[4] or 0),
    f[5] == '1' and 1 or 0, tonumber(f[8] or 0) or 0, f[9] or '', f[10] or '', tonumber(f[11] or now) or now,
    f[12] or '', f[13] or '', redis.call('HGETALL', seals_key(id)),
  }
end

local function claim_job()
  local job = load_job(id)
  if not job then return { 'REFUSED', 'unknown' } end
  local now = now_ms()

  -- The message is gone from `announced:` in any case, which makes room for another.
  local function refuse(reason)
    fill_window(job.queue, now)
    return { 'REFUSED', reason }
  end

  if TERMINAL[job.state] then return refuse('terminal') end
  if job.state ~= 'queued' then
    -- The same nonce: the connection repeated the call because the first reply was lost.
    local f = redis.call('HMGET', job_key(id), 'claim_nonce', 'attempts')
    if f[1] == nonce then
      return claim_reply(tonumber(f[2]), job.alone, job.deadline_at_ms, now)
    end
    return refuse('leased')
  end
  -- Only another worker can run it: it is announced again, but ever more rarely.
  local function leave_to_others(reason, counter, max_wait_ms)
    local refusals = redis.call('HINCRBY', job_key(id), counter, 1)
    local wait_ms = math.min(MIN_REFUSAL_WAIT_MS * 2 ^ (refusals - 1), max_wait_ms)
    redis.call('ZADD', queued_key(job.queue), 'XX', now + wait_ms, id)
    return refuse(reason)
  end

  local supported = false
  for i = 10, #ARGV do supported = supported or ARGV[i] == job.v end
  if not supported then return leave_to_others('unsupported_version', 'version_refusals', MAX_REFUSAL_WAIT_MS) end
  local missing = missing_seal_key(id, ARGV[8])
  if missing then
    local reason = missing == READS_PAYLOADS and 'no_payload_store' or 'missing_key'
    return leave_to_others(reason, 'key_refusals', MAX_KEY_WAIT_MS)
  end
  if redis.call('ZSCORE', SCHEDULED, id) then return refuse('scheduled') end
  local start_by = tonumber(redis.call('HGET', job_key(id), 'start_by_ms') or nil)
  if math.min(job.deadline_at_ms or math.huge, start_by or math.huge) <= now then
    expire_job(id, job, now)
    return { 'REFUSED', 'expired' }
  end
  if pause_of_job(job.queue, job.tenant) then
    return_to_backlog(id, job) -- it was announced before the pause, or given back since
    return refuse('paused')
  end
  local known = redis.call('HMGET', job_key(id), 'identity', 'suspect', 'home', 'prefix', 'passed_over')
  -- Its time slice is over. An engine of another identity would begin it again; the worker that had it can go on.
  local home = known[3] ~= session and known[3]
  if home and known[1] ~= identity and is_connected(home) then
    announce_job(id, job.queue, true, now, home)
    return refuse('other_engine')
  end
  local worker = { session = session, held = ' ' .. ARGV[9] .. ' ' }
  if ARGV[9] ~= '' and not known[2] and may_pass_over(known[4], known[3], known[5], worker)
    and take_fitting_job(job, worker, now) then
    redis.call('HINCRBY', job_key(id), 'passed_over', 1)
    announce_job(id, job.queue, false, now) -- at the tail: its tenant has had this turn
    return refuse('passed_over')
  end

  move_state_entry(id, 'queued', 'in_progress', now)
  leave_queue(id, job)
  charge_tenant(id, job) -- unless its announcement did so
  fill_window(job.queue, now)
  if start_by then redis.call('HDEL', job_key(id), 'start_by_ms') end -- it has started in time
  redis.call('ZREM', DEADLINES, id) -- from here on the worker watches the deadline
  redis.call('ZADD', LEASES, now + lease_ms, id)
  redis.call('HINCRBY', job_key(id), 'fence', 1)
  local attempts = redis.call('HINCRBY', job_key(id), 'attempts', 1)
  if known[3] then redis.call('HDEL', job_key(id), 'home') end
  local alone = tonumber(known[2] or 0) >= SUSPECT_LIMIT
  local is_first = redis.call('HSETNX', job_key(id), 'started_at_ms', now) == 1
  if is_first and wants_event(job, 'started') then
    add_event(id, job, 'started', run_suffix(job.run), '', now)
  end
  if known[1] and known[1] ~= identity then discard_output(id) end
  redis.call('HSET', job_key(id), 'state', 'in_progress', 'owner', owner, 'identity', identity,
    'alone', alone and '1' or '0', 'claim_nonce', nonce, 'session', session, 'claimed_at_ms', now,
    'claimed_tokens', redis.call('STRLEN', tokens_key(id)) / 4)
  redis.call('PUBLISH', events_channel(id), '{"state":"in_progress"}')
  show_celery_start(id, job, owner, pid)
  return claim_reply(attempts, alone, job.deadline_at_ms, now)
end
return guard_job(id, { 'REFUSED', 'unusable' }, claim_job)
