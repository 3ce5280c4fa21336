-- Pauses of queues, tenants and endpoints, which an operator sets. What is paused waits, and is in no index of what is
-- next, so a pause costs nothing per job or event.
-- @include keys

-- The pause of a queue, tenant or endpoint, JSON; nil if it has none.
local function pause_of(kind, name)
  local text = redis.pcall('HGET', PAUSED, kind .. ':' .. name)
  return type(text) == 'string' and text or nil
end

-- The pause that keeps a job waiting: {kind, name, JSON}; nil if there is none.
local function pause_of_job(queue, tenant)
  for _, place in ipairs({ { 'queue', queue }, { 'tenant', tenant } }) do
    place[3] = pause_of(place[1], place[2])
    if place[3] then return place end
  end
end

-- Whether any queue or tenant is paused.
local function is_any_queue_paused()
  local names = redis.pcall('HKEYS', PAUSED)
  for _, name in ipairs(names.err and {} or names) do
    if string.match(name, '^queue:') or string.match(name, '^tenant:') then return true end
  end
  return false
end

-- The reply to a submission that a pause refuses; nil if none does.
local function pause_reply(queue, tenant)
  local pause = pause_of_job(queue, tenant)
  local ok, fields = pcall(cjson.decode, pause and pause[3] or 'null')
  if ok and type(fields) == 'table' and fields.refuses == true then
    return { 'PAUSED', pause[1], pause[2], pause[3] }
  end
end
