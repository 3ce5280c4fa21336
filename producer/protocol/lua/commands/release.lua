-- ARGV: cause (drain or engine_death), then for each job: id, fence. Answers a status per job.
write_even_when_full()
local cause, now = ARGV[1], now_ms()
local answers = {}
for i = 2, #ARGV, 2 do
  local id, fence = ARGV[i], tonumber(ARGV[i + 1])
  answers[#answers + 1] = guarded(id, 'FENCED', function()
    local job = load_job(id)
    return holds(job, fence) and put_back(id, job, cause, now) or 'FENCED'
  end)
end
return answers
