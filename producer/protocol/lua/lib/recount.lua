-- The walk over all jobs that have not ended. It repairs each of them and rebuilds the usage counters, which only
-- change with each job and would stay wrong forever if keys were deleted by hand.
-- @include counters, foreign_keys, keys, record, repair, repair_taken, usage

local MAX_FIELDS = 1000 -- in one command: Lua's stack has room for 8000 arguments

local function num_in_state(state) return redis.call('ZCARD', state_index_key(state)) end

-- Whether the counters are wrong: they differ from the numbers of jobs in the indexes, or are not numbers.
local function is_usage_wrong()
  local kind = redis.call('TYPE', USAGE).ok
  if kind ~= 'hash' and kind ~= 'none' then return true end
  local counted = redis.call('HMGET', USAGE, 'jobs', 'unfinished')
  local waiting, running = num_in_state('queued'), num_in_state('in_progress')
  return tonumber(counted[1] or 0) ~= waiting or tonumber(counted[2] or 0) ~= waiting + running
end

-- The progress is stored in both hashes: if the two differ, one of them was deleted by hand.
local function save_recount(progress)
  local text = progress.cursor .. ' ' .. progress.last .. ' ' .. (progress.again and '1' or '0')
    .. ' ' .. (progress.is_urgent and '1' or '0')
  redis.call('HSET', USAGE, 'recount', text)
  redis.call('HSET', RECOUNT, 'recount', text)
end

local function load_recount()
  if redis.call('TYPE', USAGE).ok ~= 'hash' then return nil end
  local text = redis.call('HGET', USAGE, 'recount')
  if text and text == redis.pcall('HGET', RECOUNT, 'recount') then return parse_recount(text) end
end

-- Start a walk over the jobs that exist now. Later jobs are counted by the scripts that change them, so the walk ends
-- however many jobs arrive.
local function start_recount(is_urgent, now)
  delete_unless('hash', USAGE)
  redis.call('DEL', RECOUNT)
  local last = now
  for _, state in ipairs(UNFINISHED_STATES) do
    -- The clock of Redis may have been set back since the newest job came.
    local newest = redis.call('ZREVRANGE', state_index_key(state), 0, 0, 'WITHSCORES')[2]
    last = math.max(last, tonumber(newest or 0))
  end
  save_recount({ cursor = '-inf', last = string.format('%.17g', last), is_urgent = is_urgent })
  return load_recount()
end

-- Add what a job needs to the amounts for the new counters, if it has not ended.
local function add_to_recount(id, amounts)
  local key = job_key(id)
  local f = redis.pcall('HMGET', key, 'state', 'queue', 'tenant', 'cost', 'reserved_bytes', 'charge')
  if f.err or not f[2] or (f[1] ~= 'queued' and f[1] ~= 'in_progress') then return end
  local queue, tenant = f[2], f[3] or DEFAULT_TENANT
  local function add_to(field, amount) amounts[field] = (amounts[field] or 0) + amount end
  local function add(name, amount)
    add_to(name, amount)
    add_to(name .. ':' .. tenant, amount)
  end
  add('unfinished', 1)
  add('reserved', finite(f[5], 0))
  if redis.pcall('ZSCORE', queued_key(queue), id) and f[1] == 'queued' then
    local cost = finite(f[4], 0)
    add('jobs', 1)
    add('bytes', redis.call('HSTRLEN', key, 'doc'))
    add('tokens', cost)
    if not redis.call('ZSCORE', SCHEDULED, id) then add_to(queue_tokens_field(queue), cost) end
  end
  add_to(under_way_field(tenant, queue), finite(f[6], 0))
end

-- Write amounts to the new counters, a few fields at a time: each tenant has several.
local function write_recount(amounts)
  local part, num_fields = {}, 0
  for field, amount in pairs(amounts) do
    part[field], num_fields = amount, num_fields + 1
    if num_fields == MAX_FIELDS then
      add_to_counters(RECOUNT, part)
      part, num_fields = {}, 0
    end
  end
  if num_fields > 0 then add_to_counters(RECOUNT, part) end
end

-- The ids of the next jobs with the states of their indexes, at least `limit` of them in all, and where the page ends
-- (nil: it is the last). A page ends between two milliseconds, so that the time of submission alone decides whether a
-- job was visited.
local function read_recount_page(progress, limit)
  local first, last, ids = '(' .. progress.cursor, nil, {}
  for _, state in ipairs(UNFINISHED_STATES) do
    local at = redis.call('ZRANGEBYSCORE', state_index_key(state), first, progress.last,
      'WITHSCORES', 'LIMIT', limit - 1, 1)[2]
    if at and (not last or tonumber(at) < tonumber(last)) then last = at end
  end
  for _, state in ipairs(UNFINISHED_STATES) do
    local page = redis.call('ZRANGEBYSCORE', state_index_key(state), first, last or progress.last)
    for _, id in ipairs(page) do ids[#ids + 1] = { id, state } end
  end
  return ids, last
end

-- Repair and recount the next jobs. Return how many were visited.
local function recount_page(progress, limit, now)
  local ids, last = read_recount_page(progress, limit)
  local amounts = {}
  for _, entry in ipairs(ids) do repair_job(entry[1], entry[2], now) end
  for _, entry in ipairs(ids) do add_to_recount(entry[1], amounts) end
  write_recount(amounts)
  if last then
    progress.cursor = last
    save_recount(progress)
    return #ids
  end
  redis.call('RENAME', RECOUNT, USAGE)
  redis.call('HDEL', USAGE, 'recount')
  if progress.again then start_recount(true, now) end
  return #ids
end

-- Walk one page per call, because Redis serves no other client meanwhile. If the counters are wrong, the next call
-- follows at once, and the reply is the number of jobs visited. Otherwise a walk begins every `interval_ms` (nil:
-- never), and the workers together walk a page per PAGE_INTERVAL_MS. `is_wrong` says that something was found which a
-- running walk may have passed already, so that another one must follow it.
local function walk_unfinished_jobs(is_wrong, limit, interval_ms, now)
  local progress = load_recount()
  if is_wrong or is_usage_wrong() then
    if progress then
      progress.again = progress.again or is_wrong
      progress.is_urgent = true
    end
    return recount_page(progress or start_recount(true, now), limit, now)
  end
  if progress and progress.is_urgent then return recount_page(progress, limit, now) end
  if not interval_ms then
    if not progress then redis.call('DEL', RECOUNT) end -- left over if the other hash was deleted by hand
    return 0
  end
  if not is_repair_due(now) then return 0 end
  if progress or is_walk_due(interval_ms, now) then
    recount_page(progress or start_recount(false, now), limit, now)
  end
  repair_any_keys(now)
  repair_taken(now)
  return 0
end
