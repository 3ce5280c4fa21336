-- Pauses of queues, tenants and endpoints, which an operator sets. What is paused waits, and is in no index of what is
-- next, so a pause costs nothing per job or event.
-- @include keys

-- Pauses that this script has read: JSON, or false for none.
local known_pauses = {}

-- Read both pauses that can keep a job waiting in one command, for `pause_of`.
local function load_pauses(queue, tenant)
  local of_queue, of_tenant = 'queue:' .. queue, 'tenant:' .. tenant
  local found = redis.pcall('HMGET', PAUSED, of_queue, of_tenant)
  if found.err then found = {} end -- a key of another type, which batchmill did not write
  known_pauses[of_queue], known_pauses[of_tenant] = found[1] or false, found[2] or false
end

-- The pause of a queue, tenant or endpoint, JSON; nil if it has none.
local function pause_of(kind, name)
  local known = known_pauses[kind .. ':' .. name]
  if known ~= nil then return known or nil end
  local text = redis.pcall('HGET', PAUSED, kind .. ':' .. name)
  return type(text) == 'string' and text or nil
end

-- The pause that keeps a job waiting: {kind, name, JSON}; nil if there is none.
local function pause_of_job(queue, tenant)
  local pause = pause_of('queue', queue)
  if pause then return { 'queue', queue, pause } end
  pause = pause_of('tenant', tenant)
  if pause then return { 'tenant', tenant, pause } end
end

-- The numbers, from 1, of those pairs of a queue and a tenant that no pause holds back. `names` has them one after the
-- other, from index `first` on.
local function pairs_without_pause(names, first)
  local kept = {}
  for i = first, #names - 1, 2 do
    if not pause_of_job(names[i], names[i + 1]) then kept[#kept + 1] = (i - first) / 2 + 1 end
  end
  return kept
end

-- The reply to a submission that a pause refuses; nil if none does.
local function pause_reply(queue, tenant)
  local pause = pause_of_job(queue, tenant)
  local ok, fields = pcall(cjson.decode, pause and pause[3] or 'null')
  if ok and type(fields) == 'table' and fields.refuses == true then
    return { 'PAUSED', pause[1], pause[2], pause[3] }
  end
end
