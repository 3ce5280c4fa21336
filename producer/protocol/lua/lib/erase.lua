-- Erasing everything that is stored about a job.
-- @include dead_letters, events, index, keys, record

local EVENTS_PER_CALL = 100 -- of Redis
-- Events are found by counting up their names. Both ends of the numbers are tried, up to these limits; an event in
-- between stays until its TTL ends.
local MIN_OUTPUTS = 100 -- tried for a job of any age
local MAX_OUTPUTS = 100000 -- one per five seconds: nearly six days of output
local MAX_RUNS = 10000

-- How many `output` events a job of this age can have had. The age is that of its index entry, which is not part of
-- the record.
local function max_output_events(id, state, now)
  local at = tonumber(redis.call('ZSCORE', state_index_key(state), id) or nil) or 0
  return math.min(MIN_OUTPUTS + math.ceil(math.max(now - at, 0) / OUTPUT_EVENT_INTERVAL_MS), MAX_OUTPUTS)
end

-- Call `action` with the numbers from 1 to `count`; if there are more than `most`, only with the first and the last
-- `most` of them. A count may be forged: real events were numbered before the forgery, and are after it.
local function for_each_number(count, most, action)
  for number = 1, math.min(count, most) do action(number) end
  -- Downwards from the count: beyond 2^53 a number and its successor may be equal.
  for back = 0, math.min(count - most, most) - 1 do action(count - back) end
end

-- Erase every event that a job has had, with the dead letters of their deliveries. Their names are not stored: a run
-- has few, and `output` events are numbered.
local function erase_events(id, job, now)
  local prefix, event_ids, event_keys = 'evt_' .. id .. '_', {}, {}
  local function flush()
    if #event_ids == 0 then return end
    redis.call('ZREM', OUTBOX, unpack(event_ids))
    redis.call('ZREM', DEAD, unpack(event_ids))
    redis.call('DEL', unpack(event_keys))
    event_ids, event_keys = {}, {}
  end
  local function erase_event(name)
    local event_id = prefix .. name
    event_ids[#event_ids + 1] = event_id
    event_keys[#event_keys + 1] = event_key(event_id)
    event_keys[#event_keys + 1] = dead_key(event_id)
    if #event_ids == EVENTS_PER_CALL then flush() end
  end
  for_each_number(tonumber(job.run) or 1, MAX_RUNS, function(run)
    erase_event('started' .. run_suffix(run))
    for state in pairs(TERMINAL) do erase_event(state .. run_suffix(run)) end
  end)
  local num_outputs = tonumber(redis.call('HGET', job_key(id), 'output_events') or 0) or 0
  for_each_number(num_outputs, max_output_events(id, job.state, now), function(number)
    erase_event('output_' .. number)
  end)
  flush()
end

-- Erase a job that has ended.
local function erase_job(id, job, now)
  if job.webhook then erase_events(id, job, now) end
  delete_dead_letter(id)
  unindex_job(id, job.state, job)
  redis.call('ZREM', EXPIRING, expiring_entry(id, job.state, job))
  local key = job.idempotency_key and idempotency_key(job.idempotency_key)
  if key and redis.call('HGET', key, 'id') == id then redis.call('DEL', key) end
  -- A document from the inbox that was submitted but is not settled yet.
  redis.call('ZREM', INBOX_TAKEN, id)
  redis.call('HDEL', INBOX_DOCUMENTS, id)
  redis.call('DEL', job_key(id), tokens_key(id), text_key(id))
end
