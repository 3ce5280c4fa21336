-- Limits on the jobs that wait, of the caller and of the tenant.
-- @include keys

-- The reply that a reached limit gives; nil if it is not reached. Limits are soft: the job that reaches one is the
-- last that is accepted.
local function limit_reply(name, value, limit)
  if limit and value >= tonumber(limit) then
    return { 'FULL', name, string.format('%.0f', value), limit }
  end
end

-- `limits` are the caller's, by name; the tenant's are in the store. `usage` counts the jobs that wait.
local function reached_limit(queue, tenant, limits, usage)
  local own = redis.call('HMGET', TENANTS, tenant .. ':max_jobs', tenant .. ':max_bytes',
    tenant .. ':max_tokens')
  local depth = limits.max_queue_depth and redis.call('ZCARD', queued_key(queue))
  local waiting = usage.values
  return limit_reply('max_queue_depth', depth, limits.max_queue_depth)
    or limit_reply('max_queued_jobs', waiting[1], limits.max_queued_jobs)
    or limit_reply('max_queued_bytes', waiting[2], limits.max_queued_bytes)
    or limit_reply('max_queued_tokens', waiting[3], limits.max_queued_tokens)
    or limit_reply('max_jobs', waiting[4], own[1])
    or limit_reply('max_bytes', waiting[5], own[2])
    or limit_reply('max_tokens', waiting[6], own[3])
end
