-- End a running job with its last tokens and its result or error.
-- KEYS: none. ARGV: id, fence, state, result JSON ('' = none), error JSON ('' = none), position (tokens), token bytes,
-- tokens of prompt and output together ('' = count the output).
-- Reply: OK, ALREADY_DONE, FENCED or GAP.
-- @include finish, guard, keys, output, record, server
allow_writes_when_full()
local id, fence, state = ARGV[1], tonumber(ARGV[2]), ARGV[3]
return guard_job(id, 'FENCED', function()
  local job = load_job(id)
  if job and TERMINAL[job.state] and job.completed_fence == fence then return 'ALREADY_DONE' end
  if not holds_lease(job, fence) then return 'FENCED' end
  if not append_tokens(id, tonumber(ARGV[6]) * 4, ARGV[7]) then return 'GAP' end
  redis.call('HSET', job_key(id), 'completed_fence', fence)
  finish_job(id, job, state, ARGV[4], ARGV[5], now_ms(), tonumber(ARGV[8]))
  return 'OK'
end)
