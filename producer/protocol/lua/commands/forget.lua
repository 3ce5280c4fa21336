-- ARGV: id. Removes all that is kept of a job that has ended, its dead letters too. For an hour the id
-- alone is kept, so that a call repeated after a lost answer is told from one for an id that never was.
-- Answers {FORGOTTEN}, {ACTIVE, state} or {UNKNOWN}.
write_even_when_full()
local id = ARGV[1]
local job = load_job(id)
if job and not TERMINAL[job.state] then return { 'ACTIVE', job.state } end
if job then
  forget(id, job, now_ms())
elseif redis.call('HGET', dead_key(id), 'kind') == 'job' then
  drop_dead_letter(id) -- it outlives its record, and holds the prompt
elseif redis.call('EXISTS', forgotten_key(id)) == 0 then
  return { 'UNKNOWN' }
end
redis.call('SET', forgotten_key(id), '', 'PX', FORGOTTEN_TTL_MS)
return { 'FORGOTTEN' }
