-- Jobs whose prompts begin as one that a worker has computed: it may take such a job before another one of the same
-- tenant and queue, a bounded number of times.
-- @include announce, counters, fair_share, guard, keys, record

local MAX_PASSED_OVER = 4 -- times that other jobs of its tenant may be taken before a job for their prefixes
local JOBS_LOOKED_AT = 16 -- of the announced ones, and as many of the backlog

-- Whether a worker has computed the beginning of a job. `worker` has its session, and the prefixes that its engine
-- holds, with a space before and after each.
-- @rare
local function fits(prefix, home, worker)
  return home == worker.session or (prefix and string.find(worker.held, ' ' .. prefix .. ' ', 1, true) ~= nil)
end

-- Whether another job may be taken before this one, which a worker has found first.
-- @rare
local function may_pass_over(prefix, home, num_passed_over, worker)
  if not (prefix or home) or fits(prefix, home, worker) then return false end
  return finite(num_passed_over, 0) < MAX_PASSED_OVER
end

-- Whether a waiting job of a tenant fits a worker. One whose time slice is over does not: it gave way to those before
-- it. Nor does one whose record another client of Redis has overwritten.
local function is_fitting(id, tenant, worker)
  local f = redis.pcall('HMGET', job_key(id), 'prefix', 'home', 'tenant', 'state')
  if f.err or f[2] then return false end
  return f[4] == 'queued' and (f[3] or DEFAULT_TENANT) == tenant and fits(f[1], nil, worker)
end

-- Take a job that fits out of the queue's announcements; nil if there is none.
local function take_announced(job, worker)
  local ids = redis.call('ZRANGEBYSCORE', queued_key(job.queue), '-inf', '(+inf', 'LIMIT', 0, JOBS_LOOKED_AT)
  for _, id in ipairs(ids) do
    if is_fitting(id, job.tenant, worker) and withdraw_announcement(id, job.queue) == 1 then return id end
  end
end

-- Take a job that fits out of the tenant's backlog; nil if there is none.
local function take_from_backlog(job, worker)
  local backlog = backlog_key(job.queue, job.tenant)
  local ids = redis.pcall('ZRANGE', backlog, 0, JOBS_LOOKED_AT - 1)
  for _, id in ipairs(ids.err and {} or ids) do
    if is_fitting(id, job.tenant, worker) then
      redis.call('ZREM', backlog, id)
      drop_tenant_if_idle(job.queue, job.tenant)
      return id
    end
  end
end

-- Announce a job of the same queue and tenant as `job` to a worker that it fits. Return whether there is one.
-- @rare
local function take_fitting_job(job, worker, now)
  local id = take_announced(job, worker) or take_from_backlog(job, worker)
  local found = id and load_job(id, unpack(MESSAGE_FIELDS))
  if not found then return false end
  return guard_job(id, false, function()
    charge_tenant(id, found)
    announce_job(id, job.queue, true, now, worker.session, found)
    return true
  end)
end
