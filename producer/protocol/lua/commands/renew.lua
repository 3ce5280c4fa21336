-- ARGV: lease_ms, then for each job: id, fence. Answers a status for each job.
write_even_when_full()
local lease_ms, now = tonumber(ARGV[1]), now_ms()
local answers = {}
for i = 2, #ARGV, 2 do
  local id = ARGV[i]
  answers[#answers + 1] = guarded(id, 'FENCED', function()
    local job = load_lease(id)
    if not holds(job, tonumber(ARGV[i + 1])) then return 'FENCED' end
    redis.call('ZADD', LEASES, now + lease_ms, id)
    return job.cancel_requested and 'CANCEL_REQUESTED' or 'OK'
  end)
end
return answers
