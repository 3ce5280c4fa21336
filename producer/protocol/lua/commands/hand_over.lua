-- Give jobs in progress to a worker that has asked for some, at their last checkpoint.
-- KEYS: none. ARGV: the session of that worker, then for each job: id, fence.
-- Reply: a list with one status per job: REQUEUED, CANCELLED, EXPIRED or FENCED.
-- @include finish, guard, record, server, sessions
allow_writes_when_full()
local now, statuses = now_ms(), {}
local taker = is_connected(ARGV[1]) and ARGV[1] or nil -- if it is gone, the jobs are for any worker
for i = 2, #ARGV, 2 do
  local id, fence = ARGV[i], ARGV[i + 1]
  statuses[#statuses + 1] = guard_job(id, 'FENCED', function()
    local job = load_job(id)
    return holds_lease(job, fence) and requeue_job(id, job, 'moved', now, taker) or 'FENCED'
  end)
end
return statuses
