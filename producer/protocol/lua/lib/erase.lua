-- Erasing everything that is stored about a job.
-- @include corpora, dead_letters, endpoints, events, idempotency, index, keys, leftovers, media, outbox, payloads
-- @include receiver_events, record

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
  local owner = job.tenant
  if not owner or owner == '' then owner = DEFAULT_TENANT end -- '': a batch whose lines have several
  local function flush()
    if #event_ids == 0 then return end
    unqueue_events(event_ids, endpoint_of(job.webhook, owner))
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
  local num_outputs = job.num_outputs
    or tonumber(redis.call('HGET', job_key(id), 'output_events') or 0) or 0
  for_each_number(num_outputs, max_output_events(id, job.state, now), function(number)
    erase_event('output_' .. number)
  end)
  flush()
end

-- The state of a job that has not ended, or of a batch that has begun again under the id of one that had ended; nil if
-- it can be erased.
local function unfinished_state(id, job)
  local state = job.state
  if job.is_batch then state = redis.pcall('HGET', batch_key(id), 'state') end
  if type(state) == 'string' and state ~= '' and not TERMINAL[state] then return state end
end

local function erase_batch(id)
  redis.call('DEL', batch_key(id), batch_jobs_key(id))
  for _, index in ipairs({ BATCHES, BATCHES_DUE, BATCH_INTAKES }) do redis.call('ZREM', index, id) end
end

-- Erase a job that has ended: a record, or what has outlived it (`load_leftover`); or a batch that has ended.
local function erase_job(id, job, now)
  if job.is_batch then erase_batch(id) end
  if job.webhook then erase_events(id, job, now) end
  erase_receiver_events(id)
  delete_dead_letter(id)
  delete_leftover(id)
  check_payloads(job, now)
  if redis.call('ZREM', CELERY_ENDS, id) == 1 or is_celery_task(id, job) then
    redis.call('DEL', celery_result_key(id))
  end
  redis.call('HDEL', CELERY_END_TAKERS, id)
  unindex_job(id, job.state, job)
  redis.call('ZREM', EXPIRING, expiring_entry(id, job.state, job))
  delete_idempotency_entry(id, job)
  -- A document from the inbox that was submitted but is not settled yet.
  redis.call('ZREM', INBOX_TAKEN, id)
  redis.call('HDEL', INBOX_DOCUMENTS, id)
  redis.call('HDEL', INBOX_TAKERS, id)
  redis.call('DEL', job_key(id), tokens_key(id), text_key(id), thoughts_key(id), seals_key(id))
  if job.media then forget_media(id, job, now) end
  if job.corpus then leave_corpus(id, job) end
end
