-- Events for the receivers of a tenant. The record of a job lists those that it has had, to erase them later.
-- @include endpoints, events, keys, outbox, receivers, record

-- Add an event to the outbox for each receiver of a tenant that wants it. The kind is `batch`, `generation` or
-- `response`; `traceparent` is that of the job or batch, or nil. Return the ids of the events.
local function add_receiver_events(id, tenant, kind, name, suffix, now, traceparent)
  local ids = {}
  for _, receiver in ipairs(load_receivers(tenant)) do
    local is_wanted = false
    for _, wanted in ipairs(receiver.types) do is_wanted = is_wanted or wanted == kind .. '.' .. name end
    if is_wanted then
      -- The deliverer finds the secret of a receiver by this name, which no secret of an operator can have.
      local target = { webhook = receiver.url, webhook_secret = '@' .. receiver.id, tenant = tenant,
        traceparent = traceparent }
      ids[#ids + 1] = add_event(id, target, name, suffix .. '_' .. receiver.id, '', now, kind)
    end
  end
  return ids
end

-- Add the events of the end of a job to the outbox, for the receivers of its tenant. Return what `tell_receivers` does.
-- @rare
local function add_events_of_end(id, job, state, now)
  local suffix = run_suffix(job.run)
  local ids = add_receiver_events(id, job.tenant, 'generation', state, suffix, now, job.traceparent)
  local known = job.receiver_events
  -- A background response ends in OpenAI's terms.
  local ok, details = pcall(cjson.decode, job.gateway or 'null')
  if ok and type(details) == 'table' and details.api == '/v1/responses' and details.background == true then
    local name = state == 'expired' and 'failed' or state
    if name == 'completed' and job.finish_reason == 'length' then name = 'incomplete' end
    local told = add_receiver_events(id, job.tenant, 'response', name, suffix .. '_response', now, job.traceparent)
    for _, event_id in ipairs(told) do ids[#ids + 1] = event_id end
  end
  if #ids == 0 then return known or nil end
  if known then table.insert(ids, 1, known) end
  local text = table.concat(ids, ',')
  redis.call('HSET', job_key(id), 'receiver_events', text)
  return text
end

-- Tell receivers of the end of a job (with the fields of END_FIELDS), which may have a `finish_reason`.
-- Return the ids of all events for receivers that it has had, with commas; nil if there were none.
local function tell_receivers(id, job, state, now)
  if not has_receivers(job.tenant) then return job.receiver_events or nil end
  return add_events_of_end(id, job, state, now)
end

-- Call an action with each event for receivers that a job has had; the list may be forged.
local function for_each_receiver_event(id, text, action)
  local prefix = 'evt_' .. id .. '_'
  for event_id in string.gmatch(text or '', '[^,]+') do
    if string.sub(event_id, 1, #prefix) == prefix then action(event_id) end
  end
end

-- Drop the events of an earlier end that still wait.
local function supersede_receiver_events(id)
  for_each_receiver_event(id, redis.call('HGET', job_key(id), 'receiver_events'), supersede_event)
end

local function erase_receiver_events(id)
  local text = redis.pcall('HGET', job_key(id), 'receiver_events')
  if type(text) ~= 'string' then text = redis.pcall('HGET', leftover_key(id), 'receiver_events') end
  if type(text) ~= 'string' then return end
  for_each_receiver_event(id, text, function(event_id)
    local ok, endpoint = pcall(endpoint_of_event, event_id)
    unqueue_events({ event_id }, ok and endpoint or endpoint_of('', DEFAULT_TENANT))
    redis.call('ZREM', DEAD, event_id)
    redis.call('DEL', event_key(event_id), dead_key(event_id))
  end)
end
