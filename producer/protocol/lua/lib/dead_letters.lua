-- Dead letters: jobs, documents and webhook events that were given up, kept with the reason.
-- @include keys

local DEAD_TTL_MS = 30 * 24 * 3600 * 1000

local function delete_dead_letter(id)
  redis.call('ZREM', DEAD, id)
  return redis.call('DEL', dead_key(id)) == 1
end

-- Remove a key of another type, which batchmill did not write, so that a hash can be stored there.
local function delete_unless_hash(key)
  local kind = redis.call('TYPE', key).ok
  if kind ~= 'hash' and kind ~= 'none' then redis.call('DEL', key) end
end

local function add_dead_letter(id, kind, reason, payload, source, now)
  delete_unless_hash(dead_key(id))
  redis.call('HSET', dead_key(id), 'id', id, 'kind', kind, 'reason', reason, 'payload', payload,
    'source', source, 'at_ms', now)
  redis.call('PEXPIRE', dead_key(id), DEAD_TTL_MS)
  redis.call('ZADD', DEAD, now, id)
end
