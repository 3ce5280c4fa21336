-- ARGV: id. Answers how many jobs of its queue are likely to be announced before this one, or nothing
-- where it does not wait for its turn. Writes nothing.
local TENANTS_LOOKED_AT = 1000 -- those whose turn is soonest; Redis serves nobody else meanwhile
local id = ARGV[1]
local job = load_job(id)
if not job or job.state ~= 'queued' then return false end
local announced = redis.call('ZCOUNT', queued_key(job.queue), '-inf', '(+inf')
local score = redis.call('ZSCORE', queued_key(job.queue), id)
if score and tonumber(score) ~= math.huge then
  return redis.call('ZRANK', queued_key(job.queue), id) -- by the time of the announcement
end
local own = redis.call('ZRANK', backlog_key(job.queue, job.tenant), id)
if not own then return false end -- its delay is not over

-- While its tenant has that many turns, each other one has as many as its weight gives it.
local function weight(tenant)
  return tonumber(redis.call('HGET', TENANTS, tenant .. ':weight') or 1)
end
local own_weight = weight(job.tenant)
local others = 0
for _, tenant in ipairs(redis.call('ZRANGE', turns_key(job.queue), 0, TENANTS_LOOKED_AT - 1)) do
  if tenant ~= job.tenant then
    local waiting = redis.call('ZCARD', backlog_key(job.queue, tenant))
    others = others + math.min(waiting, math.ceil(own * weight(tenant) / own_weight))
  end
end
return announced + own + others
