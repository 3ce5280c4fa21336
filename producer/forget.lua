-- ARGV: id. Removes all that is kept of a job that has ended, its dead letters too.
-- Answers {FORGOTTEN}, {ACTIVE, state} or {UNKNOWN}.
write_even_when_full()
local id = ARGV[1]
local job = load_job(id)
if not job then
  -- A dead letter outlives its record, and holds the prompt.
  if redis.call('HGET', dead_key(id), 'kind') ~= 'job' then return { 'UNKNOWN' } end
  drop_dead_letter(id)
  return { 'FORGOTTEN' }
end
if not TERMINAL[job.state] then return { 'ACTIVE', job.state } end
forget(id, job)
return { 'FORGOTTEN' }
