-- Give jobs back before they have ended.
-- KEYS: none. ARGV: cause (drain, not_started, sliced, engine_death or engine_stall), then for each job: id, fence.
-- Reply: a list with one status per job: REQUEUED, DEAD, CANCELLED, EXPIRED or FENCED.
-- @include finish, guard, record, server
allow_writes_when_full()
local cause, now = ARGV[1], now_ms()
local statuses = {}
for i = 2, #ARGV, 2 do
  local id, fence = ARGV[i], ARGV[i + 1]
  statuses[#statuses + 1] = guard_job(id, 'FENCED', function()
    local job = load_job(id)
    return holds_lease(job, fence) and requeue_job(id, job, cause, now) or 'FENCED'
  end)
end
return statuses
