-- What may outlive a job's record: webhook events with their bodies, and dead letters. A leftover names what is needed
-- to erase them, and is found by the job's tags and tenant as long as they can exist. A batch that has ended has one,
-- too.
-- @include foreign_keys, keys, record

-- After the record's end: a webhook is attempted for 76 hours, and a dead letter of its delivery lives for 30 days.
local LEFTOVER_TTL_MS = 45 * 24 * 3600 * 1000

local function leftover_indexes(tenant, tags)
  local names = { leftover_tenant_key(tenant) }
  for tag in string.gmatch(tags, '[^,]+') do names[#names + 1] = leftover_tag_key(tag) end
  return names
end

local function leftover_entry(id, tenant, tags) return table.concat({ id, tenant, tags }, '\n') end

-- Keep the names by which an ended job, or a refused document (without a state), is erased later.
-- @rare
local function keep_leftover(id, job, state, num_outputs, now)
  local tenant, tags, ttl_ms = job.tenant or DEFAULT_TENANT, job.tags or '', LEFTOVER_TTL_MS
  ttl_ms = ttl_ms + (job.result_ttl_ms or 0)
  redis.call('DEL', leftover_key(id))
  redis.call('HSET', leftover_key(id), 'tenant', tenant, 'tags', tags, 'state', state, 'run', job.run or 1,
    'num_outputs', num_outputs)
  for _, name in ipairs({ 'webhook', 'idempotency_key', 'is_batch', 'receiver_events' }) do
    if job[name] then redis.call('HSET', leftover_key(id), name, job[name]) end
  end
  redis.call('PEXPIRE', leftover_key(id), ttl_ms)
  local at = state ~= '' and redis.call('ZSCORE', state_index_key(state), id) or now
  for _, index in ipairs(leftover_indexes(tenant, tags)) do add_entry(index, at, id) end
  redis.call('ZADD', LEFTOVERS, now + ttl_ms, leftover_entry(id, tenant, tags))
end

-- A leftover with the fields of a job that erasing needs; nil if there is none.
local function load_leftover(id)
  local f = redis.pcall('HMGET', leftover_key(id), 'tenant', 'tags', 'state', 'run', 'num_outputs', 'webhook',
    'idempotency_key', 'is_batch')
  if f.err or not f[1] then return nil end
  return {
    tenant = f[1],
    tags = f[2] or '',
    state = f[3] or '',
    run = tonumber(f[4] or 1) or 1,
    num_outputs = tonumber(f[5] or 0) or 0,
    webhook = f[6],
    idempotency_key = f[7],
    is_batch = f[8] == '1',
  }
end

local function delete_leftover(id)
  local leftover = load_leftover(id)
  if not leftover then return end
  for _, index in ipairs(leftover_indexes(leftover.tenant, leftover.tags)) do redis.pcall('ZREM', index, id) end
  redis.call('ZREM', LEFTOVERS, leftover_entry(id, leftover.tenant, leftover.tags))
  redis.call('DEL', leftover_key(id))
end

-- Remove the index entries of leftovers that have expired. Return how many there were.
local function drop_expired_leftovers(limit, now)
  local entries = redis.call('ZRANGEBYSCORE', LEFTOVERS, '-inf', now, 'LIMIT', 0, limit)
  for _, entry in ipairs(entries) do
    redis.call('ZREM', LEFTOVERS, entry)
    local id, tenant, tags = string.match(entry, '^(.-)\n(.-)\n(.*)$')
    if id then
      for _, index in ipairs(leftover_indexes(tenant, tags)) do redis.pcall('ZREM', index, id) end
    end
  end
  return #entries
end
