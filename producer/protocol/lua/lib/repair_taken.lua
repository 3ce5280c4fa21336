-- Repairing what was taken and is in no index of leases any more, because that was deleted by hand or evicted: plain
-- Celery tasks, and documents of the inbox. Nothing else would hand them out again.
-- @include keys

local SCANNED_TASK_KEYS = 200 -- of the whole store, per page
local SAMPLED_DOCUMENTS = 100 -- per page; at most a thousand are taken at a time

-- Keys of other types, which batchmill did not write, must not stop the sweep: hence `pcall`.
local function repair_taken_documents(now)
  local ids = redis.pcall('HRANDFIELD', INBOX_DOCUMENTS, SAMPLED_DOCUMENTS)
  if ids.err then return end
  for _, id in ipairs(ids) do redis.pcall('ZADD', INBOX_TAKEN, 'NX', now, id) end
end

local function repair_taken_tasks(now)
  local cursor, prefix = redis.call('HGET', REPAIR, 'tasks_cursor') or '0', taken_task_key('')
  if not string.match(cursor, '^%d+$') then cursor = '0' end
  local page = redis.call('SCAN', cursor, 'MATCH', prefix .. '*', 'COUNT', SCANNED_TASK_KEYS)
  redis.call('HSET', REPAIR, 'tasks_cursor', page[1])
  for _, key in ipairs(page[2]) do redis.pcall('ZADD', TASKS_TAKEN, 'NX', now, string.sub(key, #prefix + 1)) end
end

-- Make each of them due that has no lease.
local function repair_taken(now)
  repair_taken_documents(now)
  repair_taken_tasks(now)
end
