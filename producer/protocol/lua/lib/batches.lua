-- What becomes of a batch when its jobs end.

-- What decides about a batch; nil where there is none. `total` is known once no line can follow.
local function load_batch(id)
  if redis.call('TYPE', batch_key(id)).ok ~= 'hash' then return nil end -- gone, or forged
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

-- The end of a batch, in the script in which its last job ends or its last line is known.
local function end_batch_if_done(id, now)
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
  redis.call('ZADD', BATCHES_DUE, now + batch.result_ttl_ms, id) -- the sweep ends its index entry
end

-- A batch is told of the end of each of its jobs once, whatever becomes of the job later.
local function count_in_batch(id, state, now)
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
  end_batch_if_done(batch_id, now)
end

-- A job that is retried in time is waited for again; an end that a batch has told of stands.
local function uncount_in_batch(id)
  local batch_id = redis.call('HGET', job_key(id), 'batch')
  local batch = batch_id and load_batch(batch_id)
  if not batch or (batch.state ~= 'validating' and batch.state ~= 'in_progress') then return end
  if redis.call('HDEL', job_key(id), 'batch_counted') == 0 then return end
  redis.call('HINCRBY', batch_key(batch_id), 'failed', -1)
  if redis.call('HDEL', job_key(id), 'batch_late') == 1 then
    redis.call('HINCRBY', batch_key(batch_id), 'num_late', -1)
  end
end

-- No line can follow, and the jobs that have not ended are to be cancelled: the sweep does so, page
-- by page, where the client that asked for it does not.
local function begin_to_cancel_batch(id, batch, error_text, now)
  redis.call('HSETNX', batch_key(id), 'cancelling_at_ms', now)
  redis.call('HSETNX', batch_key(id), 'total', redis.call('ZCARD', batch_jobs_key(id)))
  redis.call('HSET', batch_key(id), 'state', 'cancelling')
  if error_text ~= '' then redis.call('HSETNX', batch_key(id), 'error', error_text) end
  redis.call('ZADD', BATCHES_DUE, now, id)
  end_batch_if_done(id, now)
end
