-- ARGV: lease_ms, then for each job: id, fence. Answers a status for each job.
write_even_when_full()
local lease_ms, now = tonumber(ARGV[1]), now_ms()
local answers = {}
for i = 2, #ARGV, 2 do
  local id = ARGV[i]
  local job = load_lease(id)
  local answer = 'FENCED'
  if holds(job, tonumber(ARGV[i + 1])) then
    redis.call('ZADD', LEASES, now + lease_ms, id)
    answer = job.cancel_requested and 'CANCEL_REQUESTED' or 'OK'
  end
  answers[#answers + 1] = answer
end
return answers
