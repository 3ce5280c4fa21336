-- Queue waiting events again whose endpoint's queue has lost them (a key was deleted or overwritten by hand), and drop
-- entries without an event. Deliverers call it for one page after another.
-- KEYS: none. ARGV: start (rank among all waiting events), limit.
-- Reply: {start of the next page (0 = this was the last one), number of events that were lost}.
-- @include events, foreign_keys, keys, outbox, server
allow_writes_when_full()
local start, limit, now = tonumber(ARGV[1]), tonumber(ARGV[2]), now_ms()
-- By then the event itself has been gone for days, whenever its delivery ended.
local SETTLED_TTL_MS = 14 * 24 * 3600 * 1000
local MAX_FORGOTTEN = 1000
delete_unless('zset', SETTLED_EVENTS)
local old = redis.call('ZRANGEBYSCORE', SETTLED_EVENTS, '-inf', now - SETTLED_TTL_MS, 'LIMIT', 0, MAX_FORGOTTEN)
if #old > 0 then redis.call('ZREM', SETTLED_EVENTS, unpack(old)) end
delete_unless('zset', OUTBOX)
local entries = redis.call('ZRANGE', OUTBOX, start, start + limit - 1, 'WITHSCORES')
local num_dropped, num_lost, is_scheduled = 0, 0, {}

local function repair_event(id, created_at)
  local f = redis.call('HMGET', event_key(id), 'state', 'replay')
  local endpoint = endpoint_of_event(id)
  local class = f[2] and 'replay' or 'live'
  with_endpoint_keys(endpoint, function()
    if (f[1] or 'pending') ~= 'pending' or redis.call('EXISTS', event_key(id)) == 0 then
      unqueue_events({ id }, endpoint)
      num_dropped = num_dropped + 1
    elseif not redis.call('ZSCORE', due_events_key(class, endpoint), id) then
      queue_event(class, id, endpoint, now, created_at)
      num_lost = num_lost + 1
    elseif not is_scheduled[class .. endpoint] then
      schedule_endpoint(class, endpoint)
    end
  end)
  is_scheduled[class .. endpoint] = true
end

for i = 1, #entries, 2 do
  local id = entries[i]
  if not pcall(repair_event, id, tonumber(entries[i + 1])) and redis.call('TYPE', event_key(id)).ok ~= 'hash' then
    bury_event(id, '', now)
    num_dropped = num_dropped + 1
  end
end
local is_last = #entries < 2 * limit
return { is_last and 0 or start + limit - num_dropped, num_lost }
