-- Cancel a waiting job, or ask the worker of a running job to stop it.
-- KEYS: none. ARGV: id, '1' to free the job's idempotency key as well if this call cancels it.
-- Reply: {CANCELLED}, {CANCELLING}, {ALREADY_TERMINAL, state} or {UNKNOWN}.
-- @include finish, guard, idempotency, record, server
allow_writes_when_full()
local id = ARGV[1]
return guard_job(id, { 'UNKNOWN' }, function()
  local job = load_job(id)
  if not job then return { 'UNKNOWN' } end
  if ARGV[2] == '1' and not TERMINAL[job.state] then free_idempotency_key(id, job) end
  local outcome = request_cancel(id, job, now_ms())
  return { outcome, outcome == 'ALREADY_TERMINAL' and job.state or nil }
end)
