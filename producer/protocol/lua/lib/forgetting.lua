-- Removing all that is kept of a job, for the scripts that do.

local EVENTS_A_CALL = 100 -- of Redis
local MIN_OUTPUTS = 100 -- looked for whatever a job's age
-- Looked for from either end; what lies between goes when its own time is over.
local MOST_OUTPUTS = 100000 -- of five seconds each: nearly six days of output
local MOST_RUNS = 10000

-- `output` events that a job of its age can have had. The age is that of its index entry, which lies
-- outside of the record.
local function most_outputs(id, state, now)
  local at = tonumber(redis.call('ZSCORE', state_index(state), id) or nil) or 0
  return math.min(MIN_OUTPUTS + math.ceil(math.max(now - at, 0) / OUTPUT_EVENT_MS), MOST_OUTPUTS)
end

-- Call `action` with the numbers from 1 to `count`; where these are more than `most`, with so many of
-- the first and of the last. For a count that was forged: events were numbered before, and go on after.
local function each_number(count, most, action)
  for number = 1, math.min(count, most) do action(number) end
  -- Downwards from the count: beyond 2^53 a number and its successor may be one and the same.
  for back = 0, math.min(count - most, most) - 1 do action(count - back) end
end

-- Every event that a job has had, and the dead letters of their deliveries. Names are counted up
-- rather than kept: a run has few, and `output` events are numbered.
local function forget_events(id, job, now)
  local prefix, event_ids, event_keys = 'evt_' .. id .. '_', {}, {}
  local function flush()
    if #event_ids == 0 then return end
    redis.call('ZREM', OUTBOX, unpack(event_ids))
    redis.call('ZREM', DEAD, unpack(event_ids))
    redis.call('DEL', unpack(event_keys))
    event_ids, event_keys = {}, {}
  end
  local function forget_event(name)
    local event_id = prefix .. name
    event_ids[#event_ids + 1] = event_id
    event_keys[#event_keys + 1] = event_key(event_id)
    event_keys[#event_keys + 1] = dead_key(event_id)
    if #event_ids == EVENTS_A_CALL then flush() end
  end
  each_number(tonumber(job.run) or 1, MOST_RUNS, function(run)
    forget_event('started' .. run_suffix(run))
    for state in pairs(TERMINAL) do forget_event(state .. run_suffix(run)) end
  end)
  local num_outputs = tonumber(redis.call('HGET', job_key(id), 'output_events') or 0) or 0
  each_number(num_outputs, most_outputs(id, job.state, now), function(number)
    forget_event('output_' .. number)
  end)
  flush()
end

-- All that is kept of a job that has ended.
local function forget(id, job, now)
  if job.webhook then forget_events(id, job, now) end
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
