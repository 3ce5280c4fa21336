-- Announcements: Celery messages that workers pop, a window of the jobs that wait. They have a list of their own: what
-- Celery's senders push to a queue are jobs that have no record yet.
-- @include celery_message, counters, fair_share, guard, keys, pauses, record, usage

local DEFAULT_WINDOW_JOBS = 8 -- announcements of a queue, unless the operator has set WINDOW
local MAX_WITHDRAW_LENGTH = 64 -- a longer list is not searched for a message
-- Entries without a usable record that one script removes from backlogs: Redis serves no other client meanwhile. The
-- next script continues.
local MAX_DROPPED = 500
local num_dropped = 0

local HANDED_TTL_MS = 3600 * 1000 -- the list of a session that is gone is not read any more

-- What a message needs of a record.
local MESSAGE_FIELDS = { 'announcements', 'celery_headers', 'celery_embed' }

-- What the first announcement needs of a record: a few fields, because each claim announces another job. A malformed
-- record is an error.
local function read_waiting_job(id)
  local f = redis.call('HMGET', job_key(id), 'state', 'queue', 'fence', 'result_ttl_ms', 'tenant', 'cost', 'charge',
    unpack(MESSAGE_FIELDS))
  if not f[1] then return nil end
  check_record(f[1], f[2], f[3], f[4])
  local job = { state = f[1], queue = f[2], tenant = f[5] or DEFAULT_TENANT, cost = finite(f[6], 0),
    charge = finite(f[7], nil) }
  add_fields(job, MESSAGE_FIELDS, f, 7)
  return job
end

-- @rare
local function load_message_fields(id)
  local job = {}
  add_fields(job, MESSAGE_FIELDS, redis.call('HMGET', job_key(id), unpack(MESSAGE_FIELDS)), 0)
  return job
end

-- kombu pops from the right, so LPUSH adds to the tail of the queue and RPUSH to its head. With `taker`, the session of
-- a worker, the job is announced to that one only. `job` has the fields of MESSAGE_FIELDS if it is given, and maybe a
-- charge, which is written.
local function announce_job(id, queue, at_head, now, taker, job)
  job = job or load_message_fields(id)
  local number = next_number(job.announcements)
  local charge = job.charge and { 'charge', job.charge } or {}
  redis.call('HSET', job_key(id), 'announcements', number, 'announced_at_ms', now, unpack(charge))
  redis.call('ZADD', queued_key(queue), now, id)
  local message = celery_message(id, job, queue, tonumber(number))
  if taker then
    redis.call('LPUSH', handed_key(taker), message)
    redis.call('PEXPIRE', handed_key(taker), HANDED_TTL_MS)
  else
    redis.call(at_head and 'RPUSH' or 'LPUSH', announced_key(queue), message)
  end
end

-- Remove the message of an announced job, so that the list names only jobs that wait. A message that stays is refused
-- at its claim. Return how many were removed.
-- @rare
local function withdraw_announcement(id, queue)
  if redis.call('LLEN', announced_key(queue)) > MAX_WITHDRAW_LENGTH then return 0 end
  local job = load_message_fields(id)
  local message = celery_message(id, job, queue, tonumber(job.announcements or 0))
  return redis.call('LREM', announced_key(queue), 1, message)
end

-- Announce a job that was taken out of its backlog. Return whether it was announced.
local function announce_from_backlog(id, queue, now)
  local is_valid, job = pcall(read_waiting_job, id)
  if not is_valid then
    mark_unusable(id, job)
    job = nil
  end
  if not (job and job.state == 'queued') then
    -- The record was deleted by hand, or is malformed. Without the entries the counters are found to be wrong.
    redis.call('ZREM', queued_key(queue), id)
    if not job then redis.call('ZREM', state_index_key('queued'), id) end
    return false
  end
  return guard_job(id, false, function()
    charge_tenant(id, job)
    announce_job(id, queue, false, now, nil, job)
    return true
  end)
end

-- Take the first job out of a backlog; nil if there is none. A key of another type, which batchmill did not write, must
-- not stop the announcements of all others: it is deleted, and the repair finds the tenant's jobs again.
local function pop_backlog(queue, tenant)
  local popped = redis.pcall('ZPOPMIN', backlog_key(queue, tenant))
  if popped.err then redis.call('DEL', backlog_key(queue, tenant)) end
  return popped[1]
end

-- Announce waiting jobs until the window is full, each time the oldest job of the tenant that is next.
local function fill_window(queue, now)
  if pause_of('queue', queue) then return end
  -- Neither a message that a worker took and lost takes room, nor one that is left of a job that was deleted.
  local taken = redis.call('LLEN', announced_key(queue))
  local window = tonumber(redis.call('GET', WINDOW) or DEFAULT_WINDOW_JOBS)
  if taken >= window then taken = math.min(taken, redis.call('ZCOUNT', queued_key(queue), '-inf', '(+inf')) end
  local room = window - taken
  while room > 0 and num_dropped < MAX_DROPPED do
    local tenant = redis.call('ZRANGE', turns_key(queue), 0, 0)[1]
    if not tenant then return end
    local id = pop_backlog(queue, tenant)
    if id and announce_from_backlog(id, queue, now) then
      room = room - 1
    else
      num_dropped = num_dropped + 1
    end
    drop_tenant_if_idle(queue, tenant)
  end
end

-- Move jobs whose delay is over to the backlog and fill the windows. Return how many delays ended.
local function announce_due_jobs(limit, now)
  local ids = redis.call('ZRANGEBYSCORE', SCHEDULED, '-inf', now, 'LIMIT', 0, limit, 'WITHSCORES')
  for i = 1, #ids, 2 do
    redis.call('ZREM', SCHEDULED, ids[i])
    local job = load_job(ids[i])
    if job and job.state == 'queued' then
      count_queue_tokens(ids[i], job, 1)
      add_to_backlog(ids[i], job, ids[i + 1] * 1000)
      fill_window(job.queue, now)
      write_usage()
    elseif not job then -- deleted by hand, or malformed; the sweep removes it from its queue
      redis.call('ZREM', state_index_key('queued'), ids[i])
    end
  end
  return #ids / 2
end
