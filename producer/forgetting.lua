-- Removing all that is kept of a job, for the scripts that do.

-- Every event that a job has had, and the dead letters of their deliveries. Names are counted up
-- rather than kept: a run has few, and `output` events are numbered.
local function forget_events(id, job)
  local num_outputs = tonumber(redis.call('HGET', job_key(id), 'output_events') or 0)
  local names = {}
  for run = 1, job.run do
    names[#names + 1] = 'started' .. run_suffix(run)
    for state in pairs(TERMINAL) do names[#names + 1] = state .. run_suffix(run) end
  end
  for number = 1, num_outputs do names[#names + 1] = 'output_' .. number end
  for _, name in ipairs(names) do
    local event_id = 'evt_' .. id .. '_' .. name
    redis.call('ZREM', OUTBOX, event_id)
    redis.call('DEL', event_key(event_id))
    drop_dead_letter(event_id)
  end
end

-- All that is kept of a job that has ended.
local function forget(id, job)
  if job.webhook then forget_events(id, job) end
  drop_dead_letter(id)
  unindex_job(id, job.state, job)
  redis.call('ZREM', EXPIRING, expiring_entry(id, job.state, job))
  local key = job.idempotency_key and idempotency_key(job.idempotency_key)
  if key and redis.call('HGET', key, 'id') == id then redis.call('DEL', key) end
  redis.call('DEL', job_key(id), tokens_key(id), text_key(id))
end
