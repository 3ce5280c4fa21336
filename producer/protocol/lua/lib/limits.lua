-- Limits on what waits, for the scripts that let a job wait.

-- The limit that is reached, as an answer; nil where none is. Limits are soft: the job that reaches one
-- is the last that is taken.
local function full(name, value, limit)
  if limit and value >= tonumber(limit) then
    return { 'FULL', name, string.format('%.0f', value), limit }
  end
end

-- `limits` are the caller's, by name; those of the tenant lie in the store. `usage` is what waits.
local function reached_limit(queue, tenant, limits, usage)
  local own = redis.call('HMGET', TENANTS, tenant .. ':max_jobs', tenant .. ':max_bytes',
    tenant .. ':max_tokens')
  local depth = limits.max_queue_depth and redis.call('ZCARD', queued_key(queue))
  local waiting = usage.values
  return full('max_queue_depth', depth, limits.max_queue_depth)
    or full('max_queued_jobs', waiting[1], limits.max_queued_jobs)
    or full('max_queued_bytes', waiting[2], limits.max_queued_bytes)
    or full('max_queued_tokens', waiting[3], limits.max_queued_tokens)
    or full('max_jobs', waiting[4], own[1])
    or full('max_bytes', waiting[5], own[2])
    or full('max_tokens', waiting[6], own[3])
end
