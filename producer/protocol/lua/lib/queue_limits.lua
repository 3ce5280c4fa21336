-- Limits on the jobs that wait, of the caller and of the tenant, and on the webhook events that wait.
-- @include endpoints, keys, memory, receivers

-- The reply that a reached limit gives; nil if it is not reached. Limits are soft: the job that reaches one is the
-- last that is accepted.
local function limit_reply(name, value, limit)
  if limit and value >= tonumber(limit) then
    return { 'FULL', name, string.format('%.0f', value), limit, '0' }
  end
end

-- `limits` are the caller's, by name; the tenant's are in the store. `usage` is what `load_usage` returned. Bytes are
-- those of waiting documents, and those that the outputs of unfinished jobs may take.
local function reached_limit(queue, tenant, limits, usage, document_bytes, reserved_bytes, now)
  local own = redis.call('HMGET', TENANTS, tenant .. ':max_jobs', tenant .. ':max_bytes',
    tenant .. ':max_tokens')
  local depth = limits.max_queue_depth and redis.call('ZCARD', queued_key(queue))
  local function of_tenant(name) return usage[name .. ':' .. tenant] end
  return limit_reply('max_queue_depth', depth, limits.max_queue_depth)
    or limit_reply('max_queued_jobs', usage.jobs, limits.max_queued_jobs)
    or limit_reply('max_queued_bytes', usage.bytes + usage.reserved, limits.max_queued_bytes)
    or limit_reply('max_queued_tokens', usage.tokens, limits.max_queued_tokens)
    or limit_reply('max_jobs', of_tenant('jobs'), own[1])
    or limit_reply('max_bytes', of_tenant('bytes') + of_tenant('reserved'), own[2])
    or limit_reply('max_tokens', of_tenant('tokens'), own[3])
    or memory_reply(limits.max_memory_percent, usage, document_bytes, reserved_bytes, now)
end

-- The reply to a job whose end is told to a webhook, if there are too many events.
-- @rare
local function outbox_reply(webhook, tenant, limits)
  local urls = urls_of_job_receivers(tenant)
  if webhook then urls[#urls + 1] = webhook end
  if #urls == 0 then return nil end
  local function num_waiting(key)
    local number = redis.pcall('ZCARD', key)
    return type(number) == 'number' and number or 0 -- otherwise forged; `outbox_repair` mends it
  end
  local reply = limit_reply('max_outbox_events', num_waiting(OUTBOX), limits.max_outbox_events)
  for _, url in ipairs(urls) do
    local of_endpoint = due_events_key('live', endpoint_of(url, tenant))
    reply = reply or limit_reply('max_endpoint_events', num_waiting(of_endpoint), limits.max_endpoint_events)
  end
  return reply
end

-- The same for a job whose end is told to a webhook, its own or a receiver of its tenant: it must have a place in the
-- outbox, which has no limit of its own.
local function reached_outbox_limit(webhook, tenant, limits)
  if webhook or has_receivers(tenant) then return outbox_reply(webhook, tenant, limits) end
end
