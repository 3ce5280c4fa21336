-- Repairing what deleting keys by hand, or an eviction, has torn apart: a job that is in none of the places where its
-- state says it must be, and index entries whose record is gone.
-- @include announce, fair_share, finish, foreign_keys, guard, idempotency, index, keys, pauses, payloads, queues
-- @include record

local PAGE_INTERVAL_MS = 1000 -- between two pages of repair, of all workers together
local SCANNED_KEYS = 200 -- of the whole store, per page
local OLDEST_ENTRIES = 100 -- of an index, of which those without a record are removed
local SAMPLED_ENTRIES = 10 -- of a queue, per visit of the sweep
local LOST_LEASE_MS = 15000 -- a holder that lives renews a lost lease within this time

-- A page of repair is due if no worker has walked one recently.
local function is_repair_due(now)
  delete_unless('hash', REPAIR)
  local at = tonumber(redis.call('HGET', REPAIR, 'page_at_ms') or nil) or 0
  if at <= now and now - at < PAGE_INTERVAL_MS then return false end
  redis.call('HSET', REPAIR, 'page_at_ms', now)
  return true
end

local function is_walk_due(interval_ms, now)
  local at = tonumber(redis.call('HGET', REPAIR, 'walk_at_ms') or nil) or 0
  if at <= now and now - at < interval_ms then return false end
  redis.call('HSET', REPAIR, 'walk_at_ms', now)
  return true
end

-- The time without a worker after which a waiting job expires (nil: never), and how many have.
local unserved = { num_expired = 0 }

local function expire_unserved_after(ttl_ms) unserved.ttl_ms = ttl_ms end

-- Expire a job without a deadline of its own if no worker serves its queue. Return whether it has ended.
local function expire_unserved_job(id, job, now)
  if not unserved.ttl_ms or job.deadline_at_ms or pause_of_job(job.queue, job.tenant) then return false end
  local since = math.max(job.enqueued_at_ms or now, job.not_before_ms or 0)
  if now - since < unserved.ttl_ms or not is_unserved(job.queue, unserved.ttl_ms, now) then return false end
  local text = error_json('not_served', 'no worker served the model of this job for '
    .. math.floor(unserved.ttl_ms / 1000) .. ' seconds; start one with that model, or name a served model')
  finish_job(id, job, 'expired', '', text, now)
  unserved.num_expired = unserved.num_expired + 1
  return true
end

-- Queues that this script has registered.
local registered = {}

-- Where a queued job waits: announced (a score in `queued:`), delayed, or in its tenant's backlog.
local function repair_queued_job(id, job, now)
  if not registered[job.queue] then register_queue(job.queue, now) end
  registered[job.queue] = true
  local start_by = tonumber(job.start_by_ms or nil)
  local expires_at = math.min(job.deadline_at_ms or math.huge, start_by or math.huge)
  if expires_at < math.huge then redis.call('ZADD', DEADLINES, 'NX', expires_at, id) end
  local score = redis.call('ZSCORE', queued_key(job.queue), id)
  if score and tonumber(score) ~= math.huge then return end -- the sweep repeats lost announcements
  if job.not_before_ms and (job.not_before_ms > now or redis.call('ZSCORE', SCHEDULED, id)) then
    redis.call('ZADD', queued_key(job.queue), '+inf', id)
    redis.call('ZADD', SCHEDULED, 'NX', job.not_before_ms, id)
  elseif not (score and redis.call('ZSCORE', backlog_key(job.queue, job.tenant), id)
    and (redis.call('ZSCORE', turns_key(job.queue), job.tenant) or pause_of('tenant', job.tenant))) then
    return_to_backlog(id, job)
    fill_window(job.queue, now)
  end
end

-- Note the objects that a job refers to, if the index of objects was lost: nothing else would ever delete them.
local function repair_payloads(id, now)
  local values = redis.call('HMGET', job_key(id), 'doc', 'result')
  for _, value in ipairs({ values[1] or '', values[2] or '' }) do
    local name = split_reference(value)
    if name then add_entry(PAYLOADS, 'NX', now + PAYLOAD_CHECK_MS, name) end
  end
end

-- `index_state` is that of the index in which the job was found, if it was found in one.
local function repair_valid_job(id, job, index_state, now)
  local at_ms, indexes = job.enqueued_at_ms or now, label_indexes(job)
  if index_state ~= job.state then
    for _, state in ipairs(STATES) do
      if state ~= job.state then redis.call('ZREM', state_index_key(state), id) end
    end
    indexes[#indexes + 1] = state_index_key(job.state)
  end
  for _, index in ipairs(indexes) do add_entry(index, 'NX', at_ms, id) end
  if job.payloads then repair_payloads(id, now) end
  if TERMINAL[job.state] then
    local ttl_ms = redis.call('PTTL', job_key(id))
    if ttl_ms == -1 then
      ttl_ms = job.result_ttl_ms
      redis.call('PEXPIRE', job_key(id), ttl_ms)
    end
    redis.call('ZADD', EXPIRING, 'NX', now + ttl_ms, expiring_entry(id, job.state, job))
    return
  end
  keep_idempotency_entry(job, UNFINISHED_KEY_TTL_MS)
  if job.state == 'queued' then
    if expire_unserved_job(id, job, now) then return end
    repair_queued_job(id, job, now)
  else
    redis.call('ZADD', LEASES, 'NX', now + LOST_LEASE_MS, id)
  end
end

-- Put a job into all the places where its state says that it must be. Without a record, remove its entries of states.
-- A job that cannot be repaired, because one of these places is a key of another type, must not stop the walk.
local function repair_job(id, index_state, now)
  pcall(guard_job, id, nil, function()
    local job = load_job(id, 'start_by_ms')
    if job then
      repair_valid_job(id, job, index_state, now)
    elseif redis.call('EXISTS', job_key(id)) == 0 then
      for _, state in ipairs(UNFINISHED_STATES) do redis.call('ZREM', state_index_key(state), id) end
    end
  end)
end

-- Remove some entries of a queue whose jobs do not wait: nothing else looks at that of a delayed job before it is due.
local function drop_some_lost_entries(queue)
  for _, id in ipairs(redis.call('ZRANDMEMBER', queued_key(queue), SAMPLED_ENTRIES)) do
    if redis.pcall('HGET', job_key(id), 'state') ~= 'queued' then
      redis.call('ZREM', queued_key(queue), id)
    end
  end
end

-- Remove the oldest entries of an index whose records are gone. Records expire, so every such entry becomes one of the
-- oldest in time.
local function drop_old_entries(index)
  for _, id in ipairs(redis.call('ZRANGE', index, 0, OLDEST_ENTRIES - 1)) do
    if redis.call('EXISTS', job_key(id)) == 0 then redis.call('ZREM', index, id) end
  end
end

local function starts_with(text, prefix) return string.sub(text, 1, #prefix) == prefix end

local function repair_key(key, now)
  if starts_with(key, job_key('')) then
    repair_job(string.sub(key, #job_key('') + 1), nil, now)
  elseif starts_with(key, leftover_tag_key('')) or starts_with(key, leftover_tenant_key('')) then
    delete_unless('zset', key)
  elseif starts_with(key, JOB_INDEXES) and key ~= EXPIRING then
    delete_unless('zset', key)
    drop_old_entries(key)
  end
end

-- Look at some keys of the whole store, whichever indexes are left. A round takes long if the store is large; it finds
-- what the walk over the indexes cannot: records that are in no index, and entries of tags and tenants.
local function repair_any_keys(now)
  local cursor = redis.call('HGET', REPAIR, 'cursor') or '0'
  if not string.match(cursor, '^%d+$') then cursor = '0' end
  local page = redis.call('SCAN', cursor, 'MATCH', RECORDS_AND_INDEXES, 'COUNT', SCANNED_KEYS)
  redis.call('HSET', REPAIR, 'cursor', page[1])
  for _, key in ipairs(page[2]) do repair_key(key, now) end
end
