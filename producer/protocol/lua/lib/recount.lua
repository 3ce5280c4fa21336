-- Rebuilding the usage counters after records were deleted or changed by hand: the counters only change with each
-- job, and would stay wrong forever.
-- @include keys, record, usage

-- The queues in the set QUEUES that exist; the set may name a key of another type, which batchmill did not write.
local function existing_queues()
  local queues = {}
  for _, queue in ipairs(redis.call('SMEMBERS', QUEUES)) do
    if redis.call('TYPE', queued_key(queue)).ok == 'zset' then queues[#queues + 1] = queue end
  end
  return queues
end

-- Whether the counters are wrong: more jobs are counted than wait, the count is not a number, or a recount has lost one
-- of its two hashes.
local function is_usage_wrong()
  local kind = redis.call('TYPE', USAGE).ok
  if kind ~= 'hash' then return kind ~= 'none' end
  if redis.call('HEXISTS', USAGE, 'recount') == 1 then return true end
  local counted, waiting = redis.call('HGET', USAGE, 'jobs'), 0
  for _, queue in ipairs(existing_queues()) do
    waiting = waiting + redis.call('ZCARD', queued_key(queue))
  end
  -- Not `>`, which is false for NaN.
  return counted and not ((tonumber(counted) or math.huge) <= waiting) -- luacheck: ignore 581
end

-- The progress is stored in both hashes: if the two differ, one of them was deleted by hand.
local function save_recount(cursor, last, again)
  local text = cursor .. ' ' .. last .. ' ' .. (again and '1' or '0')
  redis.call('HSET', USAGE, 'recount', text)
  redis.call('HSET', RECOUNT, 'recount', text)
end

local function load_recount()
  if redis.call('TYPE', USAGE).ok ~= 'hash' then return nil end
  local text = redis.call('HGET', USAGE, 'recount')
  if text and text == redis.pcall('HGET', RECOUNT, 'recount') then return parse_recount(text) end
end

-- Start a recount of the jobs that exist now. Later jobs are counted by the scripts that change them, so the recount
-- ends however many jobs arrive.
local function start_recount(now)
  if redis.call('TYPE', USAGE).ok ~= 'hash' then redis.call('DEL', USAGE) end
  redis.call('DEL', RECOUNT)
  -- The clock of Redis may have been set back since the newest job came.
  local newest = redis.call('ZREVRANGE', state_index_key('queued'), 0, 0, 'WITHSCORES')[2]
  save_recount('-inf', string.format('%.17g', math.max(now, tonumber(newest or now))), false)
end

-- Add those of some jobs that wait to the new counters.
local function add_to_recount(ids)
  local queues, sums = {}, {}
  for _, queue in ipairs(existing_queues()) do queues[queue] = true end
  local function add(field, amount) sums[field] = (sums[field] or 0) + amount end
  for _, id in ipairs(ids) do
    local key = job_key(id)
    local f = redis.pcall('HMGET', key, 'cost', 'tenant', 'queue')
    local cost = not f.err and tonumber(f[1] or nil)
    if cost and queues[f[3]] and redis.call('ZSCORE', queued_key(f[3]), id) then
      local tenant = f[2] or DEFAULT_TENANT
      local amounts = { jobs = 1, bytes = redis.call('HSTRLEN', key, 'doc'), tokens = cost }
      for name, amount in pairs(amounts) do
        add(name, amount)
        add(name .. ':' .. tenant, amount)
      end
    end
  end
  for field, sum in pairs(sums) do
    sum = sum + tonumber(redis.call('HGET', RECOUNT, field) or 0)
    if sum == 0 then
      redis.call('HDEL', RECOUNT, field)
    else
      redis.call('HSET', RECOUNT, field, sum)
    end
  end
end

-- Recount the next jobs, `limit` of them or a few more: a page ends between two milliseconds, so that the time of
-- submission alone decides whether a job was visited. Return how many were visited.
local function recount_page(progress, limit, now)
  local index, first = state_index_key('queued'), '(' .. progress.cursor
  local last = redis.call('ZRANGEBYSCORE', index, first, progress.last, 'WITHSCORES', 'LIMIT',
    limit - 1, 1)[2]
  local ids = redis.call('ZRANGEBYSCORE', index, first, last or progress.last)
  add_to_recount(ids)
  if last then
    save_recount(last, progress.last, progress.again)
    return #ids
  end
  redis.call('RENAME', RECOUNT, USAGE)
  redis.call('HDEL', USAGE, 'recount')
  if progress.again then start_recount(now) end
  return #ids
end

-- Recount one page per call, because Redis serves no other client meanwhile. `is_wrong` says that something was found
-- which a running recount may have passed already, so that another one must follow it.
local function recount_usage(is_wrong, limit, now)
  local progress = load_recount()
  if progress then
    progress.again = progress.again or is_wrong
  elseif is_wrong or is_usage_wrong() then
    start_recount(now)
    progress = load_recount()
  else
    redis.call('DEL', RECOUNT) -- left over if the other hash was deleted by hand
    return 0
  end
  return recount_page(progress, limit, now)
end
