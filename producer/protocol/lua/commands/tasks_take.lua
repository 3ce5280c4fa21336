-- Take plain Celery tasks off their lists, each under an id and a lease, until they have a record. One that is not
-- settled before its lease ends is handed out again under the same id, so no task is lost with a worker that dies, or
-- with a reply. If the process that had taken it is gone, that counts as a lost worker: then the task is handed out
-- alone, so that it can harm no other.
-- KEYS: none. ARGV: lease_ms, limit (tasks per call), max_bytes (of a reply; a single task may have more), the caller's
-- session, milliseconds since it connected, number of lists, the lists, then `limit` fresh ids. If some of these ids
-- are in use, because the caller repeats a call, their tasks are handed out again.
-- Reply: {end of the lease, id, list, number of workers that were lost while they had it, element, id, list ...}.
-- @include keys, server, sessions
allow_writes_when_full()
local lease_ms, limit, max_bytes = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local session, connected_ms = ARGV[4], tonumber(ARGV[5])
local first_list, last_list = 7, 6 + tonumber(ARGV[6])
local now, num_bytes = now_ms(), 0
local reply = { now + lease_ms }

local function has_room() return #reply < 4 * limit + 1 and num_bytes < max_bytes end

-- A task that was taken; nil if another program has written or deleted its key.
local function load_task(id)
  local f = redis.pcall('HMGET', taken_task_key(id), 'list', 'element', 'num_lost', 'taker')
  if f.err or not (f[1] and f[2]) then return nil end
  return { list = f[1], element = f[2], num_lost = tonumber(f[3] or 0) or 0, taker = f[4] or '' }
end

local function hand_out(id, task, num_lost)
  redis.call('ZADD', TASKS_TAKEN, now + lease_ms, id)
  redis.call('HSET', taken_task_key(id), 'num_lost', num_lost, 'taker', session)
  for _, value in ipairs({ id, task.list, num_lost, task.element }) do reply[#reply + 1] = value end
  num_bytes = num_bytes + #task.element
end

-- Take the next new task under an id. Return false if every list is empty.
local function take_next(id)
  for i = first_list, last_list do
    local list = ARGV[i]
    -- The key may be of another type, which must not stop the other lists.
    local arrived = redis.pcall('RPOP', arrived_key(list))
    local element = type(arrived) == 'string' and arrived or redis.pcall('RPOP', list)
    if type(element) == 'string' then
      redis.call('HSET', taken_task_key(id), 'list', list, 'element', element)
      hand_out(id, { list = list, element = element }, 0)
      return true
    end
  end
  return false
end

for _, id in ipairs(redis.call('ZRANGEBYSCORE', TASKS_TAKEN, '-inf', now, 'LIMIT', 0, limit)) do
  if not has_room() then break end
  local task = load_task(id)
  local is_gone = task and is_taker_gone(task.taker, session)
  local num_lost = task and task.num_lost + (is_gone and 1 or 0)
  if not task then
    redis.call('ZREM', TASKS_TAKEN, id)
  elseif num_lost == 0 then
    hand_out(id, task, 0)
  elseif #reply == 1 and not (is_gone and connected_ms < OBSERVER_MS) then
    -- A caller that may not judge leaves the task, with the name of its taker, to one that may.
    hand_out(id, task, num_lost)
    return reply
  end
end
for i = last_list + 1, #ARGV do
  if not has_room() then break end
  local known = load_task(ARGV[i])
  if known then
    hand_out(ARGV[i], known, known.num_lost)
  elseif not take_next(ARGV[i]) then
    break
  end
end
return reply
