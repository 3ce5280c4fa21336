-- Batches: how the end of each job counts, and how a batch ends.
-- @include events, keys, leftovers, receiver_events, record

local BATCH_CHECK_MS = 60 * 1000 -- between two searches for jobs of a batch whose records are gone
local BATCH_IDLE_LIMIT_MS = 24 * 3600 * 1000 -- an unsealed batch that gets no line for this long is cancelled

-- The fields that decide about a batch; nil if there is none. `total` is known once no line can follow.
local function load_batch(id)
  if redis.call('TYPE', batch_key(id)).ok ~= 'hash' then return nil end -- deleted, or forged
  local f = redis.call('HMGET', batch_key(id), 'state', 'total', 'completed', 'failed', 'error',
    'is_late', 'deadline_at_ms', 'result_ttl_ms', 'webhook', 'webhook_events', 'webhook_secret',
    'num_late', 'tenant', 'line_tenant', 'line_tags', 'traceparent')
  if not f[1] then return nil end
  local owner = f[13] or f[14] or nil
  if owner == '' then owner = nil end -- its lines have several
  return {
    state = f[1],
    total = tonumber(f[2] or nil),
    num_ended = tonumber(f[3] or 0) + tonumber(f[4] or 0),
    error = f[5],
    is_late = f[6] == '1',
    deadline_at_ms = tonumber(f[7] or nil),
    result_ttl_ms = tonumber(f[8] or 0),
    webhook = f[9],
    webhook_events = f[10],
    webhook_secret = f[11] or '',
    num_late = tonumber(f[12] or 0),
    tenant = owner,
    line_tenant = f[14],
    line_tags = f[15] or '',
    traceparent = f[16],
  }
end

-- Note the tenant and the tags that all lines of a batch share, by which the batch is erased later ('' = several).
-- @rare
local function note_line_labels(id, job)
  local f = redis.call('HMGET', batch_key(id), 'line_tenant', 'line_tags')
  local tags = job.tags or ''
  if f[1] == job.tenant and f[2] == tags then return end
  local shared = {}
  for tag in string.gmatch(f[2] or tags, '[^,]+') do
    if string.find(',' .. tags .. ',', ',' .. tag .. ',', 1, true) then shared[#shared + 1] = tag end
  end
  local tenant = (not f[1] or f[1] == job.tenant) and job.tenant or ''
  redis.call('HSET', batch_key(id), 'line_tenant', tenant, 'line_tags', table.concat(shared, ','))
end

-- What is needed to erase an ended batch, and its event after that.
local function keep_batch_leftover(id, batch, receiver_events, state, now)
  keep_leftover(id, {
    tenant = batch.tenant or batch.line_tenant, -- '' if its lines have several: no tenant's erasure finds it
    tags = batch.line_tags,
    webhook = batch.webhook,
    receiver_events = receiver_events,
    result_ttl_ms = batch.result_ttl_ms,
    is_batch = '1',
  }, state, 0, now)
end

-- End a batch in the same script that ends its last job or learns the number of its lines.
local function finish_batch_if_done(id, now)
  local batch = load_batch(id)
  if TERMINAL[batch.state] or not batch.total or batch.num_ended < batch.total then return end
  local state = 'completed'
  if batch.error then
    state = 'failed'
  elseif batch.state == 'cancelling' then
    state = 'cancelled'
  elseif batch.is_late or batch.num_late > 0 then
    state = 'expired'
  end
  redis.call('HSET', batch_key(id), 'state', state, 'finalizing_at_ms', now, state .. '_at_ms', now)
  if wants_event(batch, state) then add_event(id, batch, state, '', '', now, 'batch') end
  local owner = batch.tenant or batch.line_tenant or DEFAULT_TENANT
  local told = add_receiver_events(id, owner, 'batch', state, '', now, batch.traceparent)
  keep_batch_leftover(id, batch, table.concat(told, ','), state, now)
  redis.call('PEXPIRE', batch_key(id), batch.result_ttl_ms)
  redis.call('PEXPIRE', batch_jobs_key(id), batch.result_ttl_ms)
  redis.call('ZADD', BATCHES_DUE, now + batch.result_ttl_ms, id) -- the sweep removes its index entry then
end

-- Count a job's end in its batch. Each job counts once, whatever happens to it later.
-- @rare
local function count_end_in_batch(id, job, state, now)
  local batch_id = job.batch
  if batch_id == nil then batch_id = redis.call('HGET', job_key(id), 'batch') end
  if not batch_id or redis.call('HSETNX', job_key(id), 'batch_counted', '1') == 0 then return end
  local batch = load_batch(batch_id)
  if not batch then return end -- deleted by hand
  local field = state == 'completed' and 'completed' or 'failed'
  redis.call('HINCRBY', batch_key(batch_id), field, 1)
  if state == 'expired' and batch.deadline_at_ms and batch.deadline_at_ms <= now then
    redis.call('HSET', job_key(id), 'batch_late', '1')
    redis.call('HINCRBY', batch_key(batch_id), 'num_late', 1)
  end
  finish_batch_if_done(batch_id, now)
end

-- A batch that has not ended waits again for a job that is retried; the end of a batch is final.
local function uncount_end_in_batch(id)
  local batch_id = redis.call('HGET', job_key(id), 'batch')
  local batch = batch_id and load_batch(batch_id)
  if not batch or (batch.state ~= 'validating' and batch.state ~= 'in_progress') then return end
  if redis.call('HDEL', job_key(id), 'batch_counted') == 0 then return end
  redis.call('HINCRBY', batch_key(batch_id), 'failed', -1)
  redis.call('HDEL', batch_key(batch_id), 'check') -- the job may have been passed as one that has ended
  if redis.call('HDEL', job_key(id), 'batch_late') == 1 then
    redis.call('HINCRBY', batch_key(batch_id), 'num_late', -1)
  end
end

-- Close a batch to further lines and mark it for cancellation. The client that asked for it cancels the jobs; if that
-- client dies, the sweep does, page by page.
local function start_batch_cancellation(id, error_text, now)
  redis.call('HSETNX', batch_key(id), 'cancelling_at_ms', now)
  redis.call('HSETNX', batch_key(id), 'total', redis.call('ZCARD', batch_jobs_key(id)))
  redis.call('HSET', batch_key(id), 'state', 'cancelling')
  if error_text ~= '' then redis.call('HSETNX', batch_key(id), 'error', error_text) end
  redis.call('ZADD', BATCHES_DUE, now, id)
  finish_batch_if_done(id, now)
end

-- Look for jobs whose records were deleted by hand or evicted, one page of the batch per call, and count them as failed
-- once all others are known: otherwise the batch would never end. The search keeps its place and the number of jobs
-- found that have not ended in `check`. A job that ends meanwhile is found in the next search.
local function check_batch_records(id, limit, now)
  local f = redis.call('HMGET', batch_key(id), 'check', 'total', 'completed', 'failed')
  local start, num_active = string.match(f[1] or '', '^(%d+) (%d+)$')
  start, num_active = tonumber(start or 0), tonumber(num_active or 0)
  local ids = redis.call('ZRANGE', batch_jobs_key(id), start, start + limit - 1)
  for _, job_id in ipairs(ids) do
    local job = redis.pcall('HMGET', job_key(job_id), 'state', 'batch_counted')
    if job.err or (job[1] and not job[2]) then num_active = num_active + 1 end
  end
  if #ids == limit then
    redis.call('HSET', batch_key(id), 'check', (start + #ids) .. ' ' .. num_active)
    redis.call('ZADD', BATCHES_DUE, now, id)
    return
  end
  redis.call('HDEL', batch_key(id), 'check')
  redis.call('ZADD', BATCHES_DUE, now + BATCH_CHECK_MS, id)
  local num_lost = tonumber(f[2] or 0) - tonumber(f[3] or 0) - tonumber(f[4] or 0) - num_active
  if num_lost <= 0 then return end
  redis.call('HINCRBY', batch_key(id), 'failed', num_lost)
  redis.call('HINCRBY', batch_key(id), 'num_lost', num_lost)
  finish_batch_if_done(id, now)
end
