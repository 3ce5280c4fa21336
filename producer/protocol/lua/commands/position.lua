-- Estimate how many jobs of its queue are announced before a waiting job. Writes nothing.
-- KEYS: none. ARGV: id.
-- Reply: the number, or nil if the job is not queued or its delay is not over.
-- @include keys, record
local MAX_TENANTS = 1000 -- to look at, those that are next; Redis serves no other client meanwhile
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

-- While `own` jobs of its tenant are announced, each other tenant gets announcements in proportion to its weight.
local function weight_of(tenant)
  return tonumber(redis.call('HGET', TENANTS, tenant .. ':weight') or 1)
end
local own_weight = weight_of(job.tenant)
-- Tenants whose turn comes before are announced once more than its tenant until then.
local own_turn = redis.call('ZRANK', turns_key(job.queue), job.tenant) or 0
local others = math.max(0, own_turn - MAX_TENANTS) -- each of those that are not looked at has a job
for turn, tenant in ipairs(redis.call('ZRANGE', turns_key(job.queue), 0, MAX_TENANTS - 1)) do
  if tenant ~= job.tenant then
    local waiting = redis.call('ZCARD', backlog_key(job.queue, tenant))
    local num_turns = turn <= own_turn and own + 1 or own
    others = others + math.min(waiting, math.ceil(num_turns * weight_of(tenant) / own_weight))
  end
end
return announced + own + others
