-- Counting anew what waits, for the sweep, where records were removed or changed by hand: the counters
-- change with each job and would stay wrong for ever.

-- A name in the registry may be of a key that no batchmill wrote.
local function queues_that_are()
  local queues = {}
  for _, queue in ipairs(redis.call('SMEMBERS', QUEUES)) do
    if redis.call('TYPE', queued_key(queue)).ok == 'zset' then queues[#queues + 1] = queue end
  end
  return queues
end

-- More jobs are counted than stand in the queues, or the number is none, or a new count lost its half.
local function usage_is_off()
  local kind = redis.call('TYPE', USAGE).ok
  if kind ~= 'hash' then return kind ~= 'none' end
  if redis.call('HEXISTS', USAGE, 'recount') == 1 then return true end
  local counted, waiting = redis.call('HGET', USAGE, 'jobs'), 0
  for _, queue in ipairs(queues_that_are()) do
    waiting = waiting + redis.call('ZCARD', queued_key(queue))
  end
  return counted and not ((tonumber(counted) or math.huge) <= waiting)
end

-- The progress stands beside both counts: where they differ, somebody has removed one by hand.
local function save_recount(cursor, last, again)
  local text = cursor .. ' ' .. last .. ' ' .. (again and '1' or '0')
  redis.call('HSET', USAGE, 'recount', text)
  redis.call('HSET', RECOUNT, 'recount', text)
end

local function load_recount()
  if redis.call('TYPE', USAGE).ok ~= 'hash' then return nil end
  local text = redis.call('HGET', USAGE, 'recount')
  if text and text == redis.pcall('HGET', RECOUNT, 'recount') then return read_recount(text) end
end

-- Begin a new count of the jobs that there are now. Those submitted from now on are counted by the
-- scripts that change them, so the walk ends however many come.
local function begin_recount(now)
  if redis.call('TYPE', USAGE).ok ~= 'hash' then redis.call('DEL', USAGE) end
  redis.call('DEL', RECOUNT)
  -- Redis' clock may have been put back since the newest job came.
  local newest = redis.call('ZREVRANGE', state_index('queued'), 0, 0, 'WITHSCORES')[2]
  save_recount('-inf', string.format('%.17g', math.max(now, tonumber(newest or now))), false)
end

-- Add what waits among some jobs to the new count.
local function count_waiting(ids)
  local queues, sums = {}, {}
  for _, queue in ipairs(queues_that_are()) do queues[queue] = true end
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

-- Count the next jobs, at least `limit` where there are so many: whole milliseconds, so that the time
-- of a job's submission alone tells whether it was passed. Answers how many were looked at.
local function count_page(progress, limit, now)
  local index, first = state_index('queued'), '(' .. progress.cursor
  local last = redis.call('ZRANGEBYSCORE', index, first, progress.last, 'WITHSCORES', 'LIMIT',
    limit - 1, 1)[2]
  local ids = redis.call('ZRANGEBYSCORE', index, first, last or progress.last)
  count_waiting(ids)
  if last then
    save_recount(last, progress.last, progress.again)
    return #ids
  end
  redis.call('RENAME', RECOUNT, USAGE)
  redis.call('HDEL', USAGE, 'recount')
  if progress.again then begin_recount(now) end
  return #ids
end

-- Count anew, a page a call; nobody else is served meanwhile. `is_wrong`: something has come up that a
-- count under way may have passed already, so another one follows it.
local function count_usage_anew(is_wrong, limit, now)
  local progress = load_recount()
  if progress then
    progress.again = progress.again or is_wrong
  elseif is_wrong or usage_is_off() then
    begin_recount(now)
    progress = load_recount()
  else
    redis.call('DEL', RECOUNT) -- whose other half was removed by hand
    return 0
  end
  return count_page(progress, limit, now)
end
