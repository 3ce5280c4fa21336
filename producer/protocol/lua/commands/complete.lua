-- ARGV: id, fence, state, result JSON ('' = none), error JSON ('' = none), position (tokens), token
-- bytes, tokens of prompt and output together ('' = count the output).
-- Answers OK, ALREADY_DONE, FENCED or GAP.
write_even_when_full()
local id, fence, state = ARGV[1], tonumber(ARGV[2]), ARGV[3]
return guarded(id, 'FENCED', function()
  local job = load_job(id)
  if job and TERMINAL[job.state] and job.completed_fence == fence then return 'ALREADY_DONE' end
  if not holds(job, fence) then return 'FENCED' end
  if not append_tokens(id, tonumber(ARGV[6]) * 4, ARGV[7]) then return 'GAP' end
  redis.call('HSET', job_key(id), 'completed_fence', fence)
  finish(id, job, state, ARGV[4], ARGV[5], now_ms(), tonumber(ARGV[8]))
  return 'OK'
end)
