-- Which job is announced next: tenants take turns, by what they have used and have under way, and
-- what waits is counted against the limits. docs/protocol.md, "Turns".

-- What a number of tokens is in a tenant's virtual time.
local function virtual_units(num_tokens, tenant)
  local weight = tonumber(redis.call('HGET', TENANTS, tenant .. ':weight') or 1)
  return math.floor(num_tokens * VIRTUAL_UNITS / weight + 0.5)
end

-- Note what a job is expected to cost its tenant, from its first announcement until its end.
local function charge(id, job)
  if job.charge or not job.cost then return end
  job.charge = virtual_units(job.cost, job.tenant)
  redis.call('HSET', job_key(id), 'charge', job.charge)
  redis.call('HINCRBY', under_way_key(job.queue), job.tenant, job.charge)
  redis.call('ZADD', turns_key(job.queue), 'XX', 'INCR', job.charge, job.tenant)
end

-- Put what a job really cost in the place of its charge.
local function settle_charge(id, job, num_tokens)
  if not job.charge then return end
  redis.call('HDEL', job_key(id), 'charge')
  if redis.call('HINCRBY', under_way_key(job.queue), job.tenant, -job.charge) == 0 then
    redis.call('HDEL', under_way_key(job.queue), job.tenant)
  end
  local used = virtual_units(num_tokens, job.tenant)
  redis.call('ZADD', used_key(job.queue), 'XX', 'INCR', used, job.tenant)
  redis.call('ZADD', turns_key(job.queue), 'XX', 'INCR', used - job.charge, job.tenant)
end

-- The least that a tenant with waiting jobs has used of a queue. Tenants that used less and wait for
-- nothing are forgotten: idling saves up nothing.
local function virtual_time(queue)
  if redis.call('EXISTS', turns_key(queue)) == 0 then
    redis.call('DEL', used_key(queue))
    return 0
  end
  while true do
    local first = redis.call('ZRANGE', used_key(queue), 0, 0, 'WITHSCORES')
    if not first[1] then return 0 end
    if redis.call('ZSCORE', turns_key(queue), first[1]) then return tonumber(first[2]) end
    redis.call('ZREM', used_key(queue), first[1])
  end
end

-- A job waits for its announcement, in the order of `at_us`.
local function add_to_backlog(id, job, at_us)
  local queue, tenant = job.queue, job.tenant
  redis.call('ZADD', queued_key(queue), '+inf', id)
  redis.call('ZADD', backlog_key(queue, tenant), at_us, id)
  if redis.call('ZSCORE', turns_key(queue), tenant) then return end
  local used = virtual_time(queue)
  used = math.max(used, tonumber(redis.call('ZSCORE', used_key(queue), tenant) or 0))
  local under_way = tonumber(redis.call('HGET', under_way_key(queue), tenant) or 0)
  redis.call('ZADD', used_key(queue), used, tenant)
  redis.call('ZADD', turns_key(queue), used + under_way, tenant)
end

local function end_turns_if_empty(queue, tenant)
  if redis.call('EXISTS', backlog_key(queue, tenant)) == 0 then
    redis.call('ZREM', turns_key(queue), tenant)
  end
end

-- kombu pops from the right, so LPUSH is the end of the queue and RPUSH its head.
local function announce(id, queue, at_head, now)
  local number = redis.call('HINCRBY', job_key(id), 'announcements', 1)
  redis.call('HSET', job_key(id), 'announced_at_ms', now)
  redis.call('ZADD', queued_key(queue), now, id)
  redis.call(at_head and 'RPUSH' or 'LPUSH', queue, envelope(id, queue, number))
end

-- Take the message of an announced job back, so that the list names waiting jobs only.
local function take_back(id, queue)
  if redis.call('LLEN', queue) > TAKE_BACK_JOBS then return end -- at its claim it is refused
  local number = tonumber(redis.call('HGET', job_key(id), 'announcements') or 0)
  redis.call('LREM', queue, 1, envelope(id, queue, number))
end

-- Announce waiting jobs while the queue's list has room: each time one of the tenant whose turn it is.
local function announce_next(queue, now)
  local room = tonumber(redis.call('GET', WINDOW) or WINDOW_JOBS) - redis.call('LLEN', queue)
  while room > 0 do
    local tenant = redis.call('ZRANGE', turns_key(queue), 0, 0)[1]
    if not tenant then return end
    local id = redis.call('ZPOPMIN', backlog_key(queue, tenant))[1]
    local job = id and load_job(id)
    if job and job.state == 'queued' then
      room = room - guarded(id, 0, function()
        charge(id, job)
        announce(id, queue, false, now)
        return 1
      end)
    elseif id then
      redis.call('ZREM', queued_key(queue), id) -- its record was removed by hand, or is no such job
    end
    end_turns_if_empty(queue, tenant)
  end
end

-- What waits in all queues and of one tenant, as one hash counts it: jobs, bytes and tokens of each.
local function load_counts(key, tenant)
  local fields = { 'jobs', 'bytes', 'tokens', 'jobs:' .. tenant, 'bytes:' .. tenant,
    'tokens:' .. tenant, 'recount' }
  local values = redis.call('HMGET', key, unpack(fields))
  for i = 1, 6 do values[i] = tonumber(values[i] or 0) end
  return { key = key, tenant = tenant, fields = fields, values = values }
end

local function load_usage(tenant) return load_counts(USAGE, tenant) end

-- How far the sweep has come that counts anew (usage.lua); nil where none does. The new count holds the
-- jobs that were submitted up to the cursor, or after the last one that it has to go through.
local function read_recount(text)
  local cursor, last, again = string.match(text, '^(%S+) (%S+) ([01])$')
  if not (tonumber(cursor) and tonumber(last)) then return nil end
  return { cursor = cursor, last = last, again = again == '1' }
end

-- Whether the new count has passed a job: by the time of its submission, which never changes.
local function has_passed(progress, id)
  for _, state in ipairs(STATES) do
    local at = tonumber(redis.call('ZSCORE', state_index(state), id) or nil)
    if at then return at <= tonumber(progress.cursor) or at > tonumber(progress.last) end
  end
  return false
end

local function add_to_counts(counts, num_bytes, num_tokens, sign)
  local amounts, written, empty = { 1, num_bytes, num_tokens }, {}, {}
  for i = 1, 6 do
    local value = counts.values[i] + sign * amounts[(i - 1) % 3 + 1]
    if value == 0 then
      empty[#empty + 1] = counts.fields[i]
    else
      written[#written + 1] = counts.fields[i]
      written[#written + 1] = value
    end
  end
  if #written > 0 then redis.call('HSET', counts.key, unpack(written)) end
  if #empty > 0 then redis.call('HDEL', counts.key, unpack(empty)) end
end

-- Count a job in or out of what waits; `sign` is 1 or -1. Its index entry is there.
local function count_usage(usage, id, num_bytes, num_tokens, sign)
  add_to_counts(usage, num_bytes, num_tokens, sign)
  local progress = usage.values[7] and read_recount(usage.values[7])
  if progress and has_passed(progress, id) then
    add_to_counts(load_counts(RECOUNT, usage.tenant), num_bytes, num_tokens, sign)
  end
end

-- The same for a job that is stored.
local function recount(id, job, sign)
  if not job.cost then return end
  count_usage(load_usage(job.tenant), id, redis.call('HSTRLEN', job_key(id), 'doc'), job.cost, sign)
end

-- A queued job leaves its queue, for a worker or for its end. Answers whether it was announced.
local function leave_queue(id, job)
  local score = redis.call('ZSCORE', queued_key(job.queue), id)
  if not score then return false end
  redis.call('ZREM', queued_key(job.queue), id)
  recount(id, job, -1)
  if tonumber(score) ~= math.huge then return true end
  if redis.call('ZREM', SCHEDULED, id) == 0 then
    redis.call('ZREM', backlog_key(job.queue, job.tenant), id)
    end_turns_if_empty(job.queue, job.tenant)
  end
  return false
end

-- Let jobs wait for their announcement whose time has come; answers how many.
local function announce_due(limit, now)
  local ids = redis.call('ZRANGEBYSCORE', SCHEDULED, '-inf', now, 'LIMIT', 0, limit, 'WITHSCORES')
  for i = 1, #ids, 2 do
    redis.call('ZREM', SCHEDULED, ids[i])
    local job = load_job(ids[i])
    if job and job.state == 'queued' then
      add_to_backlog(ids[i], job, ids[i + 1] * 1000)
      announce_next(job.queue, now)
    elseif not job then -- removed by hand; which queue it was in, nobody knows
      for _, queue in ipairs(redis.call('SMEMBERS', QUEUES)) do
        redis.pcall('ZREM', queued_key(queue), ids[i]) -- a name may be of a key that is no queue
      end
    end
  end
  return #ids / 2
end
