-- What sessions have taken: documents of the inbox, plain Celery tasks, ends to report to Celery, and webhook events.
-- @include events, keys, outbox

-- Keys of other types, which batchmill did not write, must not keep the jobs of lost workers back: hence `pcall`.
local function taken_ids(index)
  local ids = redis.pcall('ZRANGE', index, 0, -1)
  return ids.err and {} or ids
end

-- What these sessions have taken, by a hash of takers.
local function ids_taken_by(is_lost, takers_key)
  local takers, ids = redis.pcall('HGETALL', takers_key), {}
  for i = 1, takers.err and 0 or #takers, 2 do
    if is_lost[takers[i + 1]] then ids[#ids + 1] = takers[i] end
  end
  return ids
end

-- Make an event due, as at the end of its lease.
local function release_event(id, now)
  local f = redis.call('HMGET', event_key(id), 'state', 'replay')
  local endpoint = endpoint_of_event(id)
  with_endpoint_keys(endpoint, function()
    free_claim(id, endpoint)
    if f[1] ~= 'pending' then return end
    redis.call('ZADD', due_events_key(f[2] and 'replay' or 'live', endpoint), 'XX', now, id)
    schedule_both_classes(endpoint)
  end)
end

-- Hand out again what these sessions had taken, without waiting for the leases. Return how many things.
local function release_taken(is_lost, now)
  local num_released = 0
  local function release(index, id)
    redis.call('ZADD', index, now, id)
    num_released = num_released + 1
  end
  -- `inbox_take` and `tasks_take` see by the taker, which stays, that a worker was lost.
  for _, id in ipairs(taken_ids(INBOX_TAKEN)) do
    local taker = redis.pcall('HGET', INBOX_TAKERS, id)
    if type(taker) == 'string' and is_lost[string.match(taker, '^%d+ (.*)$') or ''] then release(INBOX_TAKEN, id) end
  end
  for _, id in ipairs(taken_ids(TASKS_TAKEN)) do
    local taker = redis.pcall('HGET', taken_task_key(id), 'taker')
    if type(taker) == 'string' and is_lost[taker] then release(TASKS_TAKEN, id) end
  end
  for _, id in ipairs(ids_taken_by(is_lost, CELERY_END_TAKERS)) do
    num_released = num_released + (redis.pcall('ZADD', CELERY_ENDS, 'XX', 'CH', 0, id) == 1 and 1 or 0)
    redis.call('HDEL', CELERY_END_TAKERS, id)
  end
  for _, id in ipairs(ids_taken_by(is_lost, OUTBOX_TAKERS)) do
    if pcall(release_event, id, now) then num_released = num_released + 1 end
  end
  return num_released
end
