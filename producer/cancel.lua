-- ARGV: id. Answers {CANCELLED}, {CANCELLING}, {ALREADY_TERMINAL, state} or {UNKNOWN}.
write_even_when_full()
local id = ARGV[1]
return guarded(id, { 'UNKNOWN' }, function()
  local job = load_job(id)
  if not job then return { 'UNKNOWN' } end
  if TERMINAL[job.state] then return { 'ALREADY_TERMINAL', job.state } end
  if job.state == 'in_progress' then
    redis.call('HSET', job_key(id), 'cancel_requested', '1')
    return { 'CANCELLING' }
  end
  cancel(id, job, now_ms())
  return { 'CANCELLED' }
end)
