-- Removing all that is kept of a job, for the scripts that do.

local function forget_event(event_id)
  redis.call('ZREM', OUTBOX, event_id)
  redis.call('DEL', event_key(event_id))
  drop_dead_letter(event_id)
end

-- Whether a name is that of an event of a job, and not of one whose id only begins alike.
local function is_event_name(name)
  if string.match(name, '^output_%d+$') then return true end
  local word = string.match(name, '^(%a+)$') or string.match(name, '^(%a+)_run%d+$')
  return word == 'started' or TERMINAL[word or ''] == true
end

-- Those that are there, searched among all keys.
local function forget_events_found(prefix)
  for _, key in ipairs({ event_key(prefix), dead_key(prefix) }) do
    local start, cursor = #key - #prefix + 1, '0'
    repeat
      local page = redis.call('SCAN', cursor, 'MATCH', key .. '*', 'COUNT', 1000)
      cursor = page[1]
      for _, found in ipairs(page[2]) do
        local event_id = string.sub(found, start)
        if is_event_name(string.sub(event_id, #prefix + 1)) then forget_event(event_id) end
      end
    until cursor == '0'
  end
end

-- Every event that a job has had, and the dead letters of their deliveries. Names are counted up
-- rather than kept: a run has few, and `output` events are numbered. Numbers that no batchmill wrote
-- may be of any size: where there are fewer keys than names, the keys are gone through instead.
local function forget_events(id, job)
  local num_outputs = tonumber(redis.call('HGET', job_key(id), 'output_events') or 0)
  local num_runs, prefix = tonumber(job.run), 'evt_' .. id .. '_'
  local num_names = num_outputs and num_runs and num_outputs + 5 * num_runs
  if not (num_names and num_names <= 100 + redis.call('DBSIZE')) then
    return forget_events_found(prefix)
  end
  for run = 1, num_runs do
    forget_event(prefix .. 'started' .. run_suffix(run))
    for state in pairs(TERMINAL) do forget_event(prefix .. state .. run_suffix(run)) end
  end
  for number = 1, num_outputs do forget_event(prefix .. 'output_' .. number) end
end

-- All that is kept of a job that has ended.
local function forget(id, job)
  if job.webhook then forget_events(id, job) end
  drop_dead_letter(id)
  unindex_job(id, job.state, job)
  redis.call('ZREM', EXPIRING, expiring_entry(id, job.state, job))
  local key = job.idempotency_key and idempotency_key(job.idempotency_key)
  if key and redis.call('HGET', key, 'id') == id then redis.call('DEL', key) end
  -- A document that came through the inbox and was submitted, but not settled yet.
  redis.call('ZREM', INBOX_TAKEN, id)
  redis.call('HDEL', INBOX_DOCUMENTS, id)
  redis.call('DEL', job_key(id), tokens_key(id), text_key(id))
end
