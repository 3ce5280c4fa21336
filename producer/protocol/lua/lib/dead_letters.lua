-- Dead letters: jobs, documents and webhook events that were given up, kept with the reason.
-- @include foreign_keys, keys, payloads, server

local DEAD_TTL_MS = 30 * 24 * 3600 * 1000

local function delete_dead_letter(id)
  local payload = redis.pcall('HGET', dead_key(id), 'payload')
  local name = type(payload) == 'string' and split_reference(payload)
  if name then redis.call('ZADD', PAYLOADS, 'XX', now_ms(), name) end
  redis.call('ZREM', DEAD, id)
  redis.call('SREM', PLAIN_LETTERS, id)
  return redis.call('DEL', dead_key(id)) == 1
end

-- Drop the oldest letters beyond `max`, at most `limit` of them, and count them. Return how many.
local function drop_excess_letters(max, limit)
  local num_excess = math.min(redis.call('ZCARD', DEAD) - max, limit)
  if num_excess <= 0 then return 0 end
  for _, id in ipairs(redis.call('ZRANGE', DEAD, 0, num_excess - 1)) do delete_dead_letter(id) end
  redis.call('HINCRBY', TOTALS, 'dead_letters_dropped', num_excess)
  return num_excess
end

-- `history` is that of a job's attempts: a letter is kept longer than the record. Other letters have none.
-- @rare
local function add_dead_letter(id, kind, reason, payload, source, now, history)
  delete_unless('hash', dead_key(id))
  redis.call('HSET', dead_key(id), 'id', id, 'kind', kind, 'reason', reason, 'payload', payload,
    'source', source, 'at_ms', now, 'history', history or '')
  redis.call('PEXPIRE', dead_key(id), DEAD_TTL_MS)
  redis.call('ZADD', DEAD, now, id)
end
