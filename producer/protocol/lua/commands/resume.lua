-- End the pause of a queue, a tenant or an endpoint. Its jobs are announced in their order; a tenant begins as one that
-- has just begun to wait.
-- KEYS: none. ARGV: kind (queue, tenant or endpoint), name.
-- Reply: 1 if it was paused, otherwise 0.
-- @include announce, fair_share, keys, outbox, pauses, queues, server
allow_writes_when_full()
local kind, name, now = ARGV[1], ARGV[2], now_ms()
if not pause_of(kind, name) then return 0 end
redis.call('HDEL', PAUSED, kind .. ':' .. name)
if kind == 'queue' then
  fill_window(name, now)
elseif kind == 'tenant' then
  for _, queue in ipairs(next_queues(0)) do
    if redis.call('EXISTS', backlog_key(queue, name)) == 1 then
      take_turn(queue, name)
      fill_window(queue, now)
    end
  end
else
  with_endpoint_keys(name, function()
    for class in pairs(LANES) do schedule_endpoint(class, name) end
  end)
end
return 1
