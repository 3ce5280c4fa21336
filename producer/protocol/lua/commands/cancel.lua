-- ARGV: id. Answers {CANCELLED}, {CANCELLING}, {ALREADY_TERMINAL, state} or {UNKNOWN}.
write_even_when_full()
local id = ARGV[1]
return guarded(id, { 'UNKNOWN' }, function()
  local job = load_job(id)
  if not job then return { 'UNKNOWN' } end
  local outcome = cancel_or_ask(id, job, now_ms())
  return { outcome, outcome == 'ALREADY_TERMINAL' and job.state or nil }
end)
