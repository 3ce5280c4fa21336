-- ARGV: cause (drain or engine_death), then for each job: id, fence. Answers a status per job.
write_even_when_full()
local cause, now = ARGV[1], now_ms()
local answers = {}
for i = 2, #ARGV, 2 do
  local job = load_job(ARGV[i])
  local may = holds(job, tonumber(ARGV[i + 1]))
  answers[#answers + 1] = may and put_back(ARGV[i], job, cause, now) or 'FENCED'
end
return answers
