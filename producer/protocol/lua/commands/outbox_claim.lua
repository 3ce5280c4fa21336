-- Claim webhook events that are due. Hosts take turns, and in each turn the endpoints of that host. The due time of a
-- claimed event moves to the end of its lease, so an event whose deliverer died becomes due again by itself. Events for
-- a disabled endpoint are given up instead, without an attempt.
-- KEYS: none. ARGV: owner, nonce (random, of this call), lease_ms, then the most events to claim: in all, for hosts
-- that may be slow and have nothing in flight, for hosts that may be slow, and replayed ones; then the most deliveries
-- in flight to one host, and to one endpoint; the caller's session ('' = it has none).
-- Reply: a list of {event id, type, job id, url, attempt, fence, created_at_ms, body ('' = not rendered yet), secret
-- name ('' = the default one), output tokens ('' = not an `output` event), lane (fast, first, more or replay),
-- traceparent ('' = none)}.
-- @include endpoints, events, keys, outbox, record, server
allow_writes_when_full()
keep_time()
local MAX_GIVEN_UP = 100 -- events of a disabled endpoint per turn
local VISITS_PER_EVENT = 4 -- a turn may yield nothing, because the host or endpoint has its limit in flight
local LANE_NAMES = { [FAST_HOSTS] = 'fast', [FIRST_HOSTS] = 'first', [MORE_HOSTS] = 'more', [REPLAY_HOSTS] = 'replay' }
local owner, nonce, lease_ms, now = ARGV[1], ARGV[2], tonumber(ARGV[3]), now_ms()
local room = {
  [FAST_HOSTS] = tonumber(ARGV[4]),
  [FIRST_HOSTS] = tonumber(ARGV[5]),
  [MORE_HOSTS] = tonumber(ARGV[6]),
  [REPLAY_HOSTS] = tonumber(ARGV[7]),
}
local per_host, per_endpoint, session = tonumber(ARGV[8]), tonumber(ARGV[9]), ARGV[10]
local claimed, is_claimed = {}, {}
local turn_ms = now - 1 -- grows with each turn, so that the next one comes after those of all others

-- One event less may be claimed: in all, and for the kind of host.
local function take_room(lane)
  local lanes = { FAST_HOSTS, lane }
  if lane == FIRST_HOSTS or lane == MORE_HOSTS then lanes = { FAST_HOSTS, FIRST_HOSTS, MORE_HOSTS } end
  if lane == FAST_HOSTS then lanes = { FAST_HOSTS } end
  for _, name in ipairs(lanes) do room[name] = room[name] - 1 end
end

local function claim_event(id, endpoint, class, lane)
  if is_claimed[id] then return end -- by this call, under a lease of 0 ms
  local key = event_key(id)
  local f = redis.call('HMGET', key, 'type', 'job_id', 'url', 'created_at_ms', 'body', 'secret',
    'num_tokens', 'state', 'traceparent')
  if not f[1] or (f[8] and f[8] ~= 'pending') then -- erased by hand, or settled
    unqueue_events({ id }, endpoint)
    return
  end
  if not (f[2] and f[3] and tonumber(f[4])) then error('a field is missing', 0) end
  local real = endpoint_of_event(id)
  if real ~= endpoint then -- forged
    unqueue_events({ id }, endpoint)
    queue_event(class, id, real, now, tonumber(f[4]))
    return
  end
  local attempt = redis.call('HINCRBY', key, 'attempts', 1)
  local fence = redis.call('HINCRBY', key, 'fence', 1)
  redis.call('HSET', key, 'owner', owner, 'nonce', nonce, 'attempted_at_ms', now)
  redis.call('ZADD', due_events_key(class, endpoint), now + lease_ms, id)
  set_taker(id, session)
  local claims = host_claims_key(host_of(endpoint))
  redis.call('ZADD', claims, now + lease_ms, claim_member(id, endpoint))
  redis.call('PEXPIRE', claims, math.max(lease_ms, redis.call('PTTL', claims)))
  claimed[#claimed + 1] = {
    id, f[1], f[2], f[3], attempt, fence_text(fence, nonce), tonumber(f[4]), f[5] or '', f[6] or '', f[7] or '',
    LANE_NAMES[lane], f[9] or '',
  }
  is_claimed[id] = true
  take_room(lane)
end

local function give_up(id, endpoint)
  local f = redis.call('HMGET', event_key(id), 'state', 'url')
  if not f[1] then
    unqueue_events({ id }, endpoint) -- erased by hand
  else
    settle_event(id, f[2] or '', endpoint, 'disabled', '', 'endpoint_disabled', now)
  end
end

-- How many deliveries to an endpoint are in flight, and when the first of their leases ends.
local function claims_of(endpoint, host)
  local members, suffix = redis.call('ZRANGE', host_claims_key(host), 0, -1, 'WITHSCORES'), '\n' .. endpoint
  local num, first_end = 0, nil
  for i = 1, #members, 2 do
    if string.sub(members[i], -#suffix) == suffix then
      num, first_end = num + 1, first_end or tonumber(members[i + 1])
    end
  end
  return num, first_end
end

-- Claim up to `limit` events of an endpoint, and note when its next turn may come.
local function visit_endpoint(endpoint, host, class, lane, limit)
  local due = due_events_key(class, endpoint)
  if redis.call('HEXISTS', ENDPOINTS_DISABLED, endpoint) == 1 then
    for _, id in ipairs(redis.call('ZRANGE', due, 0, MAX_GIVEN_UP - 1)) do
      if not pcall(give_up, id, endpoint) then bury_event(id, endpoint, now) end
    end
    return
  end
  local key = endpoint_key(endpoint)
  local next_at = read_ms(key, 'next_at_ms') or 0
  if next_at <= now then
    local most = redis.call('HEXISTS', key, 'open_until_ms') == 1 and 1 or per_endpoint
    local num_held, first_end = claims_of(endpoint, host)
    local ids = {}
    if num_held < most then
      ids = redis.call('ZRANGEBYSCORE', due, '-inf', now, 'LIMIT', 0, math.min(limit, most - num_held))
      for _, id in ipairs(ids) do
        if not pcall(claim_event, id, endpoint, class, lane) then bury_event(id, endpoint, now) end
      end
    end
    local is_full = num_held + #ids >= most
    set_state(key, 'next_at_ms', is_full and (first_end or now + lease_ms) or turn_ms)
  end
  schedule_endpoint(class, endpoint)
end

-- Give a host its turn.
local function visit_host(host, lane)
  local class = lane == REPLAY_HOSTS and 'replay' or 'live'
  redis.call('ZREMRANGEBYSCORE', host_claims_key(host), '-inf', now)
  if lane_of(class, host) == lane then
    local most = class == 'replay' and math.max(1, math.floor(per_host / 2)) or per_host
    local first_end = redis.call('ZRANGE', host_claims_key(host), 0, 0, 'WITHSCORES')[2]
    local num_free = most - redis.call('ZCARD', host_claims_key(host))
    local endpoint = redis.call('ZRANGEBYSCORE', due_endpoints_key(class, host), '-inf', now, 'LIMIT', 0, 1)[1]
    if num_free <= 0 then
      if class == 'live' then set_state(host_key(host), 'next_at_ms', tonumber(first_end)) end
      redis.call('ZADD', lane, tonumber(first_end), host)
      return
    elseif endpoint then
      local burst = lane == FAST_HOSTS and num_free or 1
      set_state(host_key(host), 'next_at_ms', turn_ms)
      visit_endpoint(endpoint, host, class, lane, math.min(burst, room[lane], room[FAST_HOSTS]))
    end
  end
  schedule_host(class, host)
end

-- The host whose turn it is; replayed events come after all others.
local function next_host()
  local host, lane, first_at
  for _, candidate in ipairs({ FIRST_HOSTS, FAST_HOSTS, MORE_HOSTS, REPLAY_HOSTS }) do
    local is_last = candidate == REPLAY_HOSTS
    if room[candidate] > 0 and room[FAST_HOSTS] > 0 and not (is_last and host) then
      local head = redis.call('ZRANGEBYSCORE', candidate, '-inf', now, 'WITHSCORES', 'LIMIT', 0, 1)
      if head[1] and (not first_at or tonumber(head[2]) < first_at) then
        host, lane, first_at = head[1], candidate, tonumber(head[2])
      end
    end
  end
  return host, lane
end

local max_visits = VISITS_PER_EVENT * (room[FAST_HOSTS] + 1)
for _ = 1, max_visits do
  turn_ms = turn_ms + 0.5 / max_visits
  local ok, host, lane = pcall(next_host)
  if not ok then
    delete_forged_keys(nil, 'unknown')
  elseif not host then
    break
  elseif not pcall(visit_host, host, lane) then
    delete_forged_keys(redis.pcall('ZRANGE', due_endpoints_key('live', host), 0, 0)[1], host)
    redis.call('ZREM', lane, host) -- `outbox_repair` finds its events again
  end
end
return claimed
