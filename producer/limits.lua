-- Limits on what waits, for the scripts that let a job wait.

-- The limit that is reached, as an answer; nil where none is. Limits are soft: the job that reaches one
-- is the last that is taken.
local function full(name, value, limit)
  value, limit = tonumber(value or nil) or 0, tonumber(limit or nil)
  if limit and value >= limit then
    return { 'FULL', name, tostring(value), tostring(limit) }
  end
end

-- `limits` are the caller's, by name; those of the tenant lie in the store.
local function reached_limit(queue, tenant, limits)
  local own = redis.call('HMGET', TENANTS, tenant .. ':max_jobs', tenant .. ':max_bytes',
    tenant .. ':max_tokens')
  local used = redis.call('HMGET', USAGE, 'jobs', 'bytes', 'tokens', 'jobs:' .. tenant,
    'bytes:' .. tenant, 'tokens:' .. tenant)
  return full('max_queue_depth', redis.call('ZCARD', queued_key(queue)), limits.max_queue_depth)
    or full('max_queued_jobs', used[1], limits.max_queued_jobs)
    or full('max_queued_bytes', used[2], limits.max_queued_bytes)
    or full('max_queued_tokens', used[3], limits.max_queued_tokens)
    or full('max_jobs', used[4], own[1])
    or full('max_bytes', used[5], own[2])
    or full('max_tokens', used[6], own[3])
end
