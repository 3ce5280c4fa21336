-- The outbox: each endpoint has its own queue of waiting events, each host an index of its endpoints, and hosts take
-- turns. So events that wait for one endpoint cost the others nothing, however many they are. Replayed events (class
-- `replay`) have queues of their own, which are served after the others.
-- @include endpoints, foreign_keys, keys, pauses

local SLOW_MS = 2000 -- a host whose attempts take longer is slow
local LANES = { live = { FAST_HOSTS, FIRST_HOSTS, MORE_HOSTS }, replay = { REPLAY_HOSTS } }

-- The index that holds a host. Hosts that are slow or not measured yet are apart, because a deliverer gives them only
-- a share of its slots; those of them without a delivery in flight come first.
local function lane_of(class, host)
  if class == 'replay' then return REPLAY_HOSTS end
  local duration_ms = read_ms(host_key(host), 'duration_ms')
  if duration_ms and duration_ms <= SLOW_MS then return FAST_HOSTS end
  return redis.call('EXISTS', host_claims_key(host)) == 1 and MORE_HOSTS or FIRST_HOSTS
end

-- Score a host by its next turn: when an endpoint is due, but not before the host may be visited again.
local function schedule_host(class, host)
  local lane = lane_of(class, host)
  for _, other in ipairs(LANES[class]) do
    if other ~= lane then redis.call('ZREM', other, host) end
  end
  local due_at = redis.call('ZRANGE', due_endpoints_key(class, host), 0, 0, 'WITHSCORES')[2]
  if due_at then
    local next_at = read_ms(host_key(host), 'next_at_ms') or 0
    redis.call('ZADD', lane, math.max(tonumber(due_at), next_at), host)
  else
    redis.call('ZREM', lane, host)
  end
end

-- Score an endpoint by its next turn: when an event is due, but not before its breaker lets one through.
local function schedule_endpoint(class, endpoint)
  local host = host_of(endpoint)
  local due_at = redis.call('ZRANGE', due_events_key(class, endpoint), 0, 0, 'WITHSCORES')[2]
  local is_disabled = redis.call('HEXISTS', ENDPOINTS_DISABLED, endpoint) == 1 -- then its events are given up
  if due_at and pause_of('endpoint', endpoint) and not is_disabled then
    redis.call('ZREM', due_endpoints_key(class, host), endpoint)
  elseif due_at then
    local next_at = read_ms(endpoint_key(endpoint), 'next_at_ms') or 0
    redis.call('ZADD', due_endpoints_key(class, host), math.max(tonumber(due_at), next_at), endpoint)
  else
    redis.call('ZREM', due_endpoints_key(class, host), endpoint)
    -- Most endpoints are idle, and need no state.
    if redis.call('HEXISTS', endpoint_key(endpoint), 'failures') == 0 then redis.call('DEL', endpoint_key(endpoint)) end
  end
  schedule_host(class, host)
end

local function schedule_both_classes(endpoint)
  schedule_endpoint('live', endpoint)
  if redis.call('ZSCORE', REPLAY_HOSTS, host_of(endpoint)) then schedule_endpoint('replay', endpoint) end
end

-- Delete those keys of an endpoint and its host that hold data of another type, which batchmill did not write. Events
-- that were queued in them are found again by `outbox_repair`.
local function delete_forged_keys(endpoint, host)
  local kinds = { [host_key(host)] = 'hash', [host_claims_key(host)] = 'zset' }
  kinds[OUTBOX], kinds[SETTLED_EVENTS] = 'zset', 'zset'
  if endpoint then kinds[endpoint_key(endpoint)] = 'hash' end
  for class, lanes in pairs(LANES) do
    if endpoint then kinds[due_events_key(class, endpoint)] = 'zset' end
    kinds[due_endpoints_key(class, host)] = 'zset'
    for _, lane in ipairs(lanes) do kinds[lane] = 'zset' end
  end
  for key, kind in pairs(kinds) do delete_unless(kind, key) end
end

-- Run an action on an endpoint's keys, which must not fail because one of them is forged: it may end a job.
local function with_endpoint_keys(endpoint, action)
  local ok, result = pcall(action)
  if ok then return result end
  delete_forged_keys(endpoint, host_of(endpoint))
  return action()
end

-- The member of a host's claims: an event that a deliverer is sending.
local function claim_member(id, endpoint) return id .. '\n' .. endpoint end

-- Note which session sends an event; '' is none. If the key is of another type, only leases count until the next sweep.
local function set_taker(id, session)
  if session == '' then
    redis.pcall('HDEL', OUTBOX_TAKERS, id)
  else
    redis.pcall('HSET', OUTBOX_TAKERS, id, session)
  end
end

-- End a claim, so that the host and the endpoint have room for another one.
local function free_claim(id, endpoint)
  local host, key = host_of(endpoint), endpoint_key(endpoint)
  set_taker(id, '')
  if redis.call('ZREM', host_claims_key(host), claim_member(id, endpoint)) == 0 then return end
  redis.call('HDEL', host_key(host), 'next_at_ms')
  local open_until = read_ms(key, 'open_until_ms')
  if open_until then
    redis.call('HSET', key, 'next_at_ms', open_until)
  else
    redis.call('HDEL', key, 'next_at_ms')
  end
end

-- Queue an event for its endpoint. `created_at` places it among all waiting events.
local function queue_event(class, id, endpoint, due_at, created_at)
  with_endpoint_keys(endpoint, function()
    redis.call('ZADD', OUTBOX, created_at, id)
    redis.call('ZADD', due_events_key(class, endpoint), due_at, id)
    schedule_endpoint(class, endpoint)
  end)
end

-- Take events of one endpoint out of the outbox, because their delivery has ended or they are erased.
local function unqueue_events(ids, endpoint)
  with_endpoint_keys(endpoint, function()
    redis.call('ZREM', OUTBOX, unpack(ids))
    redis.call('ZREM', SETTLED_EVENTS, unpack(ids))
    for class in pairs(LANES) do redis.call('ZREM', due_events_key(class, endpoint), unpack(ids)) end
    for _, id in ipairs(ids) do free_claim(id, endpoint) end
    schedule_both_classes(endpoint)
  end)
end
