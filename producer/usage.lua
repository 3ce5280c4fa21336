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

-- More jobs are counted than stand in the queues, or the number is none.
local function usage_is_off()
  local kind = redis.call('TYPE', USAGE).ok
  if kind ~= 'hash' then return kind ~= 'none' end
  local counted, waiting = redis.call('HGET', USAGE, 'jobs'), 0
  for _, queue in ipairs(queues_that_are()) do
    waiting = waiting + redis.call('ZCARD', queued_key(queue))
  end
  return counted and not ((tonumber(counted) or math.huge) <= waiting)
end

-- In one script, so that nothing is submitted or claimed meanwhile. Takes the longer the more waits,
-- and leaves nothing that would make the next sweep do it again.
local function count_usage_anew()
  local sums = {}
  local function add(field, amount) sums[field] = (sums[field] or 0) + amount end
  for _, queue in ipairs(queues_that_are()) do
    local start, ids = 0, nil
    repeat
      ids = redis.call('ZRANGE', queued_key(queue), start, start + 999)
      start = start + #ids
      for _, id in ipairs(ids) do
        local key = job_key(id)
        local f = redis.pcall('HMGET', key, 'cost', 'tenant')
        local cost = not f.err and tonumber(f[1] or nil)
        if cost then
          local tenant = f[2] or DEFAULT_TENANT
          local amounts = { jobs = 1, bytes = redis.call('HSTRLEN', key, 'doc'), tokens = cost }
          for name, amount in pairs(amounts) do
            add(name, amount)
            add(name .. ':' .. tenant, amount)
          end
        end
      end
    until #ids == 0
  end
  redis.call('DEL', USAGE)
  for field, sum in pairs(sums) do
    if sum ~= 0 then redis.call('HSET', USAGE, field, sum) end
  end
end
