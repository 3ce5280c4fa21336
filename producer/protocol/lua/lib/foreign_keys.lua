-- Keys of another type than batchmill's, which another program has written under one of its names. A script that meets
-- such a key fails, and would fail forever; so it is deleted, and what belongs there is found again by the repair.
-- @include keys, record

-- The keys that exist once, by type.
local KEYS_OF_TYPE = {
  zset = { LEASES, DEADLINES, QUEUES, OUTBOX, SETTLED_EVENTS, FAST_HOSTS, FIRST_HOSTS, MORE_HOSTS, REPLAY_HOSTS, DEAD,
    SESSIONS, BATCHES, BATCHES_DUE, BATCH_INTAKES, CELERY_ENDS, TASKS_TAKEN, INBOX_TAKEN, SCHEDULED, EXPIRING, SERVED,
    LEFTOVERS, USED_TOKENS, PAYLOADS, PAYLOADS_UNUSED, MEDIA_DUE, CORPORA },
  hash = { TOTALS, PAUSED, ENDPOINTS_DISABLED, UNUSABLE, INBOX_DOCUMENTS, INBOX_TAKERS, OUTBOX_TAKERS,
    CELERY_END_TAKERS, RECEIVER_SECRETS, USAGE, RECOUNT, TENANTS, ADAPTERS, STEERING_VECTORS,
    REPAIR, MEMORY },
  list = { INBOX, INBOX_ARRIVED, LOAD_HISTORY },
  set = { WORKERS, PLAIN_LETTERS },
  string = { WINDOW, LAST_SWEEP, CLOCK },
}
local deleted_keys = {}

-- Delete a key unless it is missing or has this type.
-- @rare
local function delete_unless(kind, key)
  local found = redis.call('TYPE', key).ok
  if found == kind or found == 'none' then return end
  redis.call('DEL', key)
  deleted_keys[#deleted_keys + 1] = key
end

-- ZADD to an index, also if its key is of another type. Return its reply.
local function add_entry(index, ...)
  local reply = redis.pcall('ZADD', index, ...)
  if type(reply) == 'number' then return reply end
  if not string.find(reply.err, 'WRONGTYPE', 1, true) then error(reply, 0) end -- Redis may be full
  delete_unless('zset', index)
  return redis.call('ZADD', index, ...)
end

local function delete_foreign_keys()
  for kind, names in pairs(KEYS_OF_TYPE) do
    for _, key in ipairs(names) do delete_unless(kind, key) end
  end
  for _, state in ipairs(STATES) do delete_unless('zset', state_index_key(state)) end
end

-- The same for the keys of one queue.
local function delete_foreign_keys_of_queue(queue)
  for _, key in ipairs({ queued_key(queue), turns_key(queue), used_key(queue) }) do delete_unless('zset', key) end
  delete_unless('list', announced_key(queue))
end
