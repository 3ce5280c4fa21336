-- Pause a queue, a tenant or an endpoint: its jobs or events wait. Running jobs go on.
-- KEYS: none. ARGV: kind (queue, tenant or endpoint), name, by (who pauses it), reason, '1' to refuse new jobs.
-- Reply: 1 if it was not paused before, 0 if its pause was replaced.
-- @include foreign_keys, keys, outbox, pauses, queues, server
allow_writes_when_full()
local kind, name, now = ARGV[1], ARGV[2], now_ms()
delete_unless('hash', PAUSED)
local known = pause_of(kind, name)
local ok, fields = pcall(cjson.decode, known or 'null')
local since = ok and type(fields) == 'table' and tonumber(fields.since_ms) or now
redis.call('HSET', PAUSED, kind .. ':' .. name, cjson.encode({
  since_ms = string.format('%.0f', since), by = ARGV[3], reason = ARGV[4], refuses = ARGV[5] == '1',
}))
if kind == 'tenant' then
  for _, queue in ipairs(next_queues(0)) do redis.pcall('ZREM', turns_key(queue), name) end
elseif kind == 'endpoint' then
  with_endpoint_keys(name, function()
    for class in pairs(LANES) do schedule_endpoint(class, name) end
  end)
end
return known and 0 or 1
