-- Send settled webhook events again, with their ids and bodies, after all other events. One page of them, in the order
-- in which they were written.
-- KEYS: none. ARGV: after_ms (events written after this), until_ms, limit (of events to look at; those of one
-- millisecond stay together), endpoint ('' = any), job id ('' = any), '1' for failed ones only, most events that may
-- wait in the outbox, id of a receiver ('' = any).
-- Reply: {FULL} (too many wait: call again later) or {OK, after_ms of the next page ('' = this was the last one),
-- number queued, number of a disabled endpoint, number that wait already, ids whose event is gone}.
-- @include dead_letters, events, foreign_keys, keys, outbox, server
local after, last, limit = ARGV[1], ARGV[2], tonumber(ARGV[3])
local endpoint_wanted, job_wanted, failed_only, receiver_wanted = ARGV[4], ARGV[5], ARGV[6] == '1', ARGV[8]
local now, num_queued, num_disabled, num_waiting, gone = now_ms(), 0, 0, 0, {}
delete_unless('zset', SETTLED_EVENTS)
if redis.call('ZCARD', OUTBOX) >= tonumber(ARGV[7]) then return { 'FULL' } end

local function replay(id, state, endpoint, created_at)
  if redis.call('HEXISTS', ENDPOINTS_DISABLED, endpoint) == 1 then
    num_disabled = num_disabled + 1
    return
  end
  redis.call('HSET', event_key(id), 'state', 'pending', 'attempts', 0, 'replay', '1')
  redis.call('PERSIST', event_key(id))
  redis.call('ZREM', SETTLED_EVENTS, id)
  queue_event('replay', id, endpoint, now, created_at)
  if state ~= 'delivered' then delete_dead_letter(id) end
  num_queued = num_queued + 1
end

local function is_of_wanted_job(id)
  return job_wanted == '' or string.sub(id, 1, #job_wanted + 5) == 'evt_' .. job_wanted .. '_'
end

local function is_for_wanted_receiver(id)
  return receiver_wanted == '' or string.sub(id, -#receiver_wanted - 1) == '_' .. receiver_wanted
end

local function visit(id)
  if not is_of_wanted_job(id) or not is_for_wanted_receiver(id) then return end
  local f = redis.call('HMGET', event_key(id), 'state', 'created_at_ms', 'job_id')
  if not f[1] then
    if endpoint_wanted == '' then gone[#gone + 1] = id end
    return
  end
  if job_wanted ~= '' and f[3] ~= job_wanted then return end
  local endpoint = endpoint_of_event(id)
  if endpoint_wanted ~= '' and endpoint ~= endpoint_wanted then return end
  if f[1] == 'pending' then
    num_waiting = num_waiting + 1
  elseif not (failed_only and f[1] == 'delivered') and f[1] ~= 'unusable_event' then
    replay(id, f[1], endpoint, tonumber(f[2] or nil) or now)
  end
end

local page_end = redis.call('ZRANGEBYSCORE', SETTLED_EVENTS, '(' .. after, last, 'WITHSCORES', 'LIMIT', limit - 1, 1)[2]
for _, id in ipairs(redis.call('ZRANGEBYSCORE', SETTLED_EVENTS, '(' .. after, page_end or last)) do
  pcall(visit, id) -- data that batchmill did not write must not hold up the others
end
return { 'OK', page_end or '', num_queued, num_disabled, num_waiting, gone }
