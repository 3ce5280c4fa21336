-- Seal a batch: all its lines have arrived. Lines that were refused as jobs count as failed.
-- KEYS: none. ARGV: id, number of lines.
-- Reply: {OK}, {CONFLICT, lines it was sealed with}, {CLOSED, state} or {UNKNOWN}.
-- @include batches, keys, server
allow_writes_when_full()
local id, total, now = ARGV[1], tonumber(ARGV[2]), now_ms()
local batch = load_batch(id)
if not batch then return { 'UNKNOWN' } end
local num_jobs = redis.call('ZCARD', batch_jobs_key(id))
if batch.state ~= 'validating' then
  if batch.state ~= 'in_progress' and batch.state ~= 'completed' then
    return { 'CLOSED', batch.state }
  end
  if batch.total == total then return { 'OK' } end
  if batch.is_late and batch.state == 'in_progress' then return { 'CLOSED', 'expired' } end
  return { 'CONFLICT', tostring(batch.total) }
end
if total < num_jobs then return { 'CONFLICT', tostring(num_jobs) } end
redis.call('HSET', batch_key(id), 'state', 'in_progress', 'in_progress_at_ms', now, 'total', total)
redis.call('HINCRBY', batch_key(id), 'failed', total - num_jobs)
redis.call('ZADD', BATCHES_DUE, now + BATCH_CHECK_MS, id)
finish_batch_if_done(id, now)
return { 'OK' }
