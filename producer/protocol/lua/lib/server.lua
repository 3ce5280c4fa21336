-- The server itself: its clock and its memory limit. Only commands of Redis 7.0 are used in any script.
-- @include keys

local CLOCK_SLOWDOWN = 0.2 -- how much slower batchmill's clock runs while it is ahead of Redis' clock

-- The time, and that of Redis, in microseconds. Scripts go by the clock of Redis, so that no worker's clock can end a
-- lease early or late; but this one does not go back. If the clock of Redis is put back (by NTP, or by a failover to a
-- host that is behind), it continues from the last time that `keep_time` noted, and runs slower until that of Redis has
-- caught up. Otherwise leases, delays and retries would last longer by as much.
local function read_clock()
  local time = redis.call('TIME')
  local redis_us = time[1] * 1000000 + time[2]
  local text = redis.pcall('GET', CLOCK)
  local noted, ahead = string.match(type(text) == 'string' and text or '', '^(%d+) (%d+)$')
  if not noted then return redis_us, redis_us end
  noted, ahead = tonumber(noted), tonumber(ahead)
  local now = redis_us + ahead
  if ahead > 0 and now > noted then now = math.max(redis_us, now - (now - noted) * CLOCK_SLOWDOWN) end
  return math.max(now, noted), redis_us
end

local function now_us()
  return math.floor((read_clock()))
end

local function now_ms()
  return math.floor(now_us() / 1000)
end

-- Note the time, so that later scripts continue from it. Scripts that workers and deliverers call all the time do this.
-- Return the time of Redis.
local function keep_time()
  local now, redis_us = read_clock()
  redis.call('SET', CLOCK, string.format('%.0f %.0f', now, now - redis_us))
  return math.floor(redis_us / 1000)
end

-- Let the rest of the script write even if Redis has reached maxmemory. Redis refuses a script only at its first
-- write, and this one needs no memory. Every script calls this first, except those that store something new: jobs in
-- progress must continue, end and free memory. A lease that cannot be renewed because Redis is full is a lost job.
local function allow_writes_when_full()
  redis.call('ZREM', LEASES, '')
end
