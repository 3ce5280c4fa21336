-- Put back the jobs of workers whose process is gone, without waiting for their leases; also what else they, or
-- deliverers, had taken.
-- A session (one run of a program) is lost if the program has sent no heartbeat for its timeout, and Redis has no
-- connection of it either: the kernel closes the connections of a process that ends, however it ends. A worker that is
-- frozen or slow keeps its connection, and its leases decide.
-- Only a caller whose own connection has been open for OBSERVER_MS may judge. After a restart or a failover of Redis,
-- or a cut between Redis and all workers, the others have had that time to connect again.
-- KEYS: none. ARGV: the caller's session, milliseconds since it connected, limit (jobs per call).
-- Reply: {jobs put back or ended, jobs announced again, things that are handed out again, lost sessions...}. A session
-- whose jobs exceed the limit is not named yet: call again.
-- @include finish, guard, keys, lost_announcements, record, server, sessions, taken
allow_writes_when_full()
local ANNOUNCED_MS = 1000 -- a younger announcement may be on its way to a claim
local FROZEN_MS = 2000 -- while a worker has been silent for less, what it may have taken is announced again
local caller, connected_ms, limit, now = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), now_ms()

local silent = redis.call('ZRANGEBYSCORE', SESSIONS, '-inf', now, 'WITHSCORES')
if #silent == 0 or connected_ms < OBSERVER_MS or not is_connected(caller) then return { 0, 0, 0 } end

local is_lost, num_lost, is_frozen = {}, 0, false
for i = 1, #silent, 2 do
  if not is_connected(silent[i]) then
    is_lost[silent[i]] = true
    num_lost = num_lost + 1
  elseif now - silent[i + 1] < FROZEN_MS then
    is_frozen = true
  end
end

-- All leases are read, a few microseconds each, because this happens once per lost worker.
local num_jobs = 0
local leased = num_lost > 0 and redis.call('ZRANGE', LEASES, 0, -1) or {}
for _, id in ipairs(leased) do
  if num_jobs == limit then break end
  num_jobs = num_jobs + guard_job(id, 0, function()
    if not is_lost[redis.call('HGET', job_key(id), 'session')] then return 0 end
    local job = load_job(id)
    if not job or job.state ~= 'in_progress' then return 0 end -- left to the sweep
    requeue_job(id, job, 'worker_lost', now)
    return 1
  end)
end
local num_reannounced = 0
if num_lost > 0 or is_frozen then num_reannounced = reannounce_lost(ANNOUNCED_MS, limit, now) end
local reply = { num_jobs, num_reannounced, 0 }
if num_jobs == limit then return reply end
if num_lost > 0 then reply[3] = release_taken(is_lost, now) end

-- The heartbeat of a lost session goes too, unless a new run of the worker under the same name has replaced it.
local function remove_heartbeat(session)
  local name = string.match(session, '^(.*)%.%x+$')
  local text = redis.call('GET', worker_key(name))
  if text and cjson.decode(text).session ~= session then return end
  redis.call('DEL', worker_key(name))
  redis.call('SREM', WORKERS, name)
end
for session in pairs(is_lost) do
  redis.call('ZREM', SESSIONS, session)
  pcall(remove_heartbeat, session) -- any client of Redis may have written the entry
  reply[#reply + 1] = session
end
return reply
