-- Extend leases.
-- KEYS: none. ARGV: lease_ms, then for each job: id, fence.
-- Reply: a list with one status per job: OK, FENCED or CANCEL_REQUESTED.
-- @include guard, record, server
allow_writes_when_full()
local lease_ms, now = tonumber(ARGV[1]), now_ms()
local statuses, leases = {}, {}
for i = 2, #ARGV, 2 do
  local id = ARGV[i]
  statuses[#statuses + 1] = guard_job(id, 'FENCED', function()
    local job = load_lease(id)
    if not holds_lease(job, ARGV[i + 1]) then return 'FENCED' end
    leases[#leases + 1], leases[#leases + 2] = now + lease_ms, id
    return job.cancel_requested and 'CANCEL_REQUESTED' or 'OK'
  end)
end
extend_leases(leases)
return statuses
