-- Batches: how the end of each job counts, and how a batch ends.
-- @include events, keys, record

local BATCH_IDLE_LIMIT_MS = 24 * 3600 * 1000 -- an unsealed batch that gets no line for this long is cancelled

-- The fields that decide about a batch; nil if there is none. `total` is known once no line can follow.
local function load_batch(id)
  if redis.call('TYPE', batch_key(id)).ok ~= 'hash' then return nil end -- deleted, or forged
  local f = redis.call('HMGET', batch_key(id), 'state', 'total', 'completed', 'failed', 'error',
    'is_late', 'deadline_at_ms', 'result_ttl_ms', 'webhook', 'webhook_events', 'webhook_secret',
    'num_late')
  if not f[1] then return nil end
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
  }
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
  redis.call('PEXPIRE', batch_key(id), batch.result_ttl_ms)
  redis.call('PEXPIRE', batch_jobs_key(id), batch.result_ttl_ms)
  redis.call('ZADD', BATCHES_DUE, now + batch.result_ttl_ms, id) -- the sweep removes its index entry then
end

-- Count a job's end in its batch. Each job counts once, whatever happens to it later.
local function count_end_in_batch(id, state, now)
  local batch_id = redis.call('HGET', job_key(id), 'batch')
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
