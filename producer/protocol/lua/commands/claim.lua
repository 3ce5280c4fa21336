-- Give a queued job to a worker, under a lease and a new fence.
-- KEYS: none. ARGV: id, owner, lease_ms, identity, nonce (unique per call), session, pid of the worker (for Celery),
-- ids of the worker's encryption keys and what it can do (with spaces), prefixes that its engine holds (with spaces; ''
-- = it does not look for jobs with them), supported versions...
-- Reply: {CLAIMED, fence, document, token bytes, numbers with spaces between them (attempts, alone, deadline_at_ms,
-- which is -1 if there is none, enqueued_at_ms, started_at_ms, now, suspect, celery_result, retries, claimed_at_ms of
-- the first call with this nonce), then names and values of those that the job has: traceparent, history (JSON),
-- prefix, lora (digest of its LoRA adapter), media (their names), steering (digest of its steering vector), plan_state,
-- seals (of the output: a list of names and values)} or {REFUSED, reason}.
-- @include announce, celery_state, events, fair_share, finish, guard, index, keys, output, pauses, prefixes, record
-- @include sealed, server, sessions, usage
allow_writes_when_full()
local MIN_REFUSAL_WAIT_MS = 1000 -- after the first refusal for the job's version, besides the sweep's grace
local MAX_REFUSAL_WAIT_MS = 600 * 1000
local MAX_KEY_WAIT_MS = 30 * 1000 -- the same, for a key that the worker lacks: another may have it
local SUSPECT_LIMIT = 3 -- engine deaths beside other jobs, after which a job runs alone
local id, owner, lease_ms, identity, nonce = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4], ARGV[5]
local session, pid = ARGV[6], tonumber(ARGV[7])

-- What a claim needs of the record besides the fields that `load_job` always reads.
local CLAIM_FIELDS = { 'doc', 'attempts', 'suspect', 'started_at_ms', 'retries', 'history', 'claimed_at_ms',
  'sealed_with', 'start_by_ms', 'home', 'prefix', 'passed_over', 'lora', 'steering', 'plan_state',
  'plan_identity' }
-- Those that most jobs lack. The client takes as long for each element of a reply as a script for a command.
local REPLY_FIELDS = { 'traceparent', 'history', 'prefix', 'lora', 'media', 'steering', 'plan_state' }

-- The stored tokens of a job.
local function read_tokens()
  local tokens = redis.call('GET', tokens_key(id)) or ''
  if #tokens % 4 > 0 then error('the tokens are wrong', 0) end
  return tokens
end

-- `job` has the fields of the claim.
local function claim_reply(job, tokens, now)
  if not (job.doc and job.enqueued_at_ms and tonumber(job.started_at_ms)) then
    error('doc, enqueued_at_ms or started_at_ms is missing or wrong', 0)
  end
  -- One element: the client takes as long for each as for all of these numbers.
  local numbers = string.format('%d %d %d %d %d %d %d %d %d %d', job.attempts, job.alone and 1 or 0,
    job.deadline_at_ms or -1, job.enqueued_at_ms, job.started_at_ms, now, tonumber(job.suspect or 0),
    job.celery_result and 1 or 0, tonumber(job.retries or 0) or 0, tonumber(job.claimed_at_ms or now) or now)
  local reply = { 'CLAIMED', job.fence, job.doc, tokens, numbers }
  local function put(name, value)
    reply[#reply + 1] = name
    reply[#reply + 1] = value
  end
  for i = 1, #REPLY_FIELDS do
    if job[REPLY_FIELDS[i]] then put(REPLY_FIELDS[i], job[REPLY_FIELDS[i]]) end
  end
  if job.sealed_with then put('seals', redis.call('HGETALL', seals_key(id))) end
  return reply
end

local function claim_job()
  local job = load_whole_job(id, CLAIM_FIELDS)
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
    if job.claim_nonce == nonce then return claim_reply(job, read_tokens(), now) end
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
  local missing = job.sealed_with and missing_seal_key(job.sealed_with, ARGV[8])
  if missing then
    local ability = string.sub(missing, 1, 1) == '@' and 'no_decoder'
    local reason = missing == READS_PAYLOADS and 'no_payload_store' or ability or 'missing_key'
    return leave_to_others(reason, 'key_refusals', MAX_KEY_WAIT_MS)
  end
  if job.not_before_ms and redis.call('ZSCORE', SCHEDULED, id) then return refuse('scheduled') end
  local start_by = tonumber(job.start_by_ms or nil)
  if math.min(job.deadline_at_ms or math.huge, start_by or math.huge) <= now then
    expire_job(id, job, now)
    return { 'REFUSED', 'expired' }
  end
  load_pauses(job.queue, job.tenant)
  if pause_of_job(job.queue, job.tenant) then
    return_to_backlog(id, job) -- it was announced before the pause, or given back since
    return refuse('paused')
  end
  -- Its time slice is over. An engine of another identity would begin it again; the worker that had it can go on.
  local home = job.home ~= session and job.home
  if home and job.identity ~= identity and is_connected(home) then
    announce_job(id, job.queue, true, now, home)
    return refuse('other_engine')
  end
  local worker = { session = session, held = ' ' .. ARGV[9] .. ' ' }
  if ARGV[9] ~= '' and not job.suspect and may_pass_over(job.prefix, job.home, job.passed_over, worker)
    and take_fitting_job(job, worker, now) then
    redis.call('HINCRBY', job_key(id), 'passed_over', 1)
    announce_job(id, job.queue, false, now) -- at the tail: its tenant has had this turn
    return refuse('passed_over')
  end

  local fence_number, attempts, tokens = next_number(job.fence_number), next_number(job.attempts), read_tokens()
  local alone = tonumber(job.suspect or 0) >= SUSPECT_LIMIT
  move_state_entry(id, job, 'in_progress', now)
  job.num_bytes = job.doc and #job.doc
  leave_queue(id, job)
  charge_tenant(id, job) -- unless its announcement did so
  fill_window(job.queue, now)
  write_usage()
  if start_by then redis.call('HDEL', job_key(id), 'start_by_ms') end -- it has started in time
  -- From here on the worker watches the deadline.
  if job.deadline_at_ms or start_by then redis.call('ZREM', DEADLINES, id) end
  redis.call('ZADD', LEASES, now + lease_ms, id)
  if job.home then redis.call('HDEL', job_key(id), 'home') end
  local is_first = not job.started_at_ms
  if is_first and wants_event(job, 'started') then
    add_event(id, job, 'started', run_suffix(job.run), '', now)
  end
  if job.identity and job.identity ~= identity then
    discard_output(id)
    tokens, job.plan_state = '', nil
  elseif job.plan_state and job.plan_identity ~= identity then
    -- An older worker, which does not know plans, has claimed the job in between and left the state as it was.
    discard_plan(id)
    job.plan_state = nil
  end
  job.fence, job.attempts, job.alone, job.claimed_at_ms = fence_text(fence_number, nonce), attempts, alone, now
  job.started_at_ms = job.started_at_ms or now
  redis.call('HSET', job_key(id), 'state', 'in_progress', 'owner', owner, 'identity', identity,
    'alone', alone and '1' or '0', 'claim_nonce', nonce, 'session', session, 'claimed_at_ms', now,
    'claimed_tokens', #tokens / 4, 'fence', fence_number, 'attempts', attempts, 'charge', job.charge,
    'started_at_ms', job.started_at_ms)
  redis.call('PUBLISH', events_channel(id), '{"state":"in_progress"}')
  if job.celery_result then show_celery_start(id, job, owner, pid) end
  return claim_reply(job, tokens, now)
end
return guard_job(id, { 'REFUSED', 'unusable' }, claim_job)
