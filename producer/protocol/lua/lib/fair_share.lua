-- Fair share of a queue between tenants: the next announcement goes to the waiting tenant with the least tokens used
-- and in progress, divided by its weight. See docs/protocol.md, "Fair share".
-- @include counters, foreign_keys, keys, pauses, usage

local MAX_IDLE_TENANTS = 500 -- that one call removes; Redis serves no other client meanwhile
local VIRTUAL_UNITS_PER_TOKEN = 1000 -- at weight 1; virtual times are whole numbers, so that no sum drifts

local function virtual_units(num_tokens, tenant)
  local weight = finite(redis.call('HGET', TENANTS, tenant .. ':weight'), 1)
  if weight <= 0 then weight = 1 end -- no client writes such a weight
  return math.floor(num_tokens * VIRTUAL_UNITS_PER_TOKEN / weight + 0.5)
end

-- Charge a tenant for the expected cost of a job, from its first announcement until its end. The caller writes
-- `job.charge` to the record.
local function charge_tenant(id, job)
  if job.charge then return end
  job.charge = virtual_units(job.cost, job.tenant)
  redis.call('ZADD', turns_key(job.queue), 'XX', 'INCR', job.charge, job.tenant)
  add_under_way(id, job, job.charge)
end

-- Replace a job's charge with its real cost.
local function settle_charge(id, job, num_tokens)
  if not job.charge then return end
  redis.call('HDEL', job_key(id), 'charge')
  add_under_way(id, job, -job.charge)
  local used = virtual_units(num_tokens, job.tenant)
  redis.call('ZADD', used_key(job.queue), 'XX', 'INCR', used, job.tenant)
  redis.call('ZADD', turns_key(job.queue), 'XX', 'INCR', used - job.charge, job.tenant)
end

-- The least that a tenant with waiting jobs has used of a queue. Tenants that used less and have no waiting job are
-- removed: an idle tenant saves up nothing.
-- @rare
local function virtual_time(queue)
  if redis.call('EXISTS', turns_key(queue)) == 0 then
    redis.call('DEL', used_key(queue))
    return 0
  end
  local first
  for _ = 1, MAX_IDLE_TENANTS do
    first = redis.call('ZRANGE', used_key(queue), 0, 0, 'WITHSCORES')
    if not first[1] then return 0 end
    if redis.call('ZSCORE', turns_key(queue), first[1]) then break end
    redis.call('ZREM', used_key(queue), first[1])
  end
  return tonumber(first[2])
end

-- Put a tenant with a backlog among those that take turns, unless it is paused.
local function take_turn(queue, tenant)
  if redis.call('ZSCORE', turns_key(queue), tenant) or pause_of('tenant', tenant) then return end
  local used = virtual_time(queue)
  used = math.max(used, tonumber(redis.call('ZSCORE', used_key(queue), tenant) or 0))
  redis.call('ZADD', used_key(queue), used, tenant)
  redis.call('ZADD', turns_key(queue), used + load_under_way(tenant, queue), tenant)
end

-- Let a job wait for its announcement, in the order of `at_us` among its tenant's jobs, if its record keeps that place.
local function enter_backlog(id, job, at_us)
  redis.call('ZADD', queued_key(job.queue), '+inf', id)
  add_entry(backlog_key(job.queue, job.tenant), at_us, id)
  take_turn(job.queue, job.tenant)
end

local function add_to_backlog(id, job, at_us)
  redis.call('HSET', job_key(id), 'backlog_at_us', at_us)
  enter_backlog(id, job, at_us)
end

-- Put a job back into its tenant's backlog, at the place that it had there.
-- @rare
local function return_to_backlog(id, job)
  local f = redis.call('HMGET', job_key(id), 'backlog_at_us', 'enqueued_at_ms')
  add_to_backlog(id, job, finite(f[1], nil) or finite(f[2], 0) * 1000)
end

local function drop_tenant_if_idle(queue, tenant)
  if redis.call('EXISTS', backlog_key(queue, tenant)) == 0 then
    redis.call('ZREM', turns_key(queue), tenant)
  end
end

-- Take a queued job out of its queue because a worker claims it or it ends. Return whether it was announced.
local function leave_queue(id, job)
  local score = redis.call('ZSCORE', queued_key(job.queue), id)
  if not score then return false end
  redis.call('ZREM', queued_key(job.queue), id)
  count_stored_job(id, job, -1)
  local is_delayed = job.not_before_ms and redis.call('ZREM', SCHEDULED, id) == 1
  if not is_delayed then count_queue_tokens(id, job, -1) end
  if tonumber(score) ~= math.huge then return true end
  if not is_delayed then
    redis.call('ZREM', backlog_key(job.queue, job.tenant), id)
    drop_tenant_if_idle(job.queue, job.tenant)
  end
  return false
end
