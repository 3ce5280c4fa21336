-- Announcements that were lost with the process that had taken them from a queue's list.
-- @include announce, foreign_keys, guard, keys, queues, repair

-- A queue never gets more messages than it has announced jobs, so a long outage of all workers floods nothing. Jobs
-- that wait for their first announcement have an infinite score. The others are ordered by their last announcement,
-- oldest first, so all of them are announced again in time.
local function reannounce_in_queue(queue, grace_ms, limit, now)
  fill_window(queue, now) -- taken messages that named no waiting job have made room
  local announced = redis.call('ZCOUNT', queued_key(queue), '-inf', '(+inf')
  local missing = math.min(announced - redis.call('LLEN', announced_key(queue)), limit)
  if missing <= 0 then return 0 end
  local ids = redis.call('ZRANGEBYSCORE', queued_key(queue), '-inf', now - grace_ms, 'LIMIT', 0,
    missing)
  local reannounced = 0
  for i = #ids, 1, -1 do -- the oldest last: it ends up first in the queue
    reannounced = reannounced + guard_job(ids[i], 0, function()
      if redis.call('EXISTS', job_key(ids[i])) == 1 then
        announce_job(ids[i], queue, true, now)
        return 1
      end
      redis.call('ZREM', queued_key(queue), ids[i])
      redis.call('ZREM', state_index_key('queued'), ids[i])
      return 0
    end)
  end
  return reannounced
end

-- Visit the queues that were visited longest ago: announce again what was announced longer ago than `grace_ms` and is
-- missing in its list. Return how many jobs.
local function reannounce_lost(grace_ms, limit, now)
  local reannounced = 0
  -- The registry may name a key of another type, which batchmill did not write: it must not stop the others.
  for _, queue in ipairs(next_queues(limit)) do
    delete_foreign_keys_of_queue(queue)
    local ok, count = pcall(reannounce_in_queue, queue, grace_ms, limit - reannounced, now)
    if ok then reannounced = reannounced + count end
    pcall(drop_some_lost_entries, queue)
    end_queue_visit(queue, now)
  end
  return reannounced
end
