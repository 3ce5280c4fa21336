-- The server itself: its clock and its memory limit. Only commands of Redis 6.2 are used in any script.
-- @include keys

-- The clock of Redis, so that no worker's clock can end a lease early or late.
local function now_us()
  local time = redis.call('TIME')
  return time[1] * 1000000 + time[2]
end

local function now_ms()
  return math.floor(now_us() / 1000)
end

-- Let the rest of the script write even if Redis has reached maxmemory. Redis refuses a script only at its first
-- write, and this one needs no memory. Every script calls this first, except those that store something new: jobs in
-- progress must continue, end and free memory. A lease that cannot be renewed because Redis is full is a lost job.
local function allow_writes_when_full()
  redis.call('ZREM', LEASES, '')
end
