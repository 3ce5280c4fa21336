-- Pictures and sounds that jobs name, by tenant and content (`protocol/media.py`). MEDIA_DUE has each of them by the
-- time at which it is looked up whether it is needed: as long as a job that names it has not ended, and for its time
-- to live after that. `media_jobs_key` has the jobs that name it: 0 for those that have not ended, else the time of
-- their end.
-- @include counters, foreign_keys, keys, record, sealed, usage

local MEDIA_CHECK_MS = 3600 * 1000
local MEDIA_JOBS_PER_LOOK = 100
local ENTRIES_PER_END = 3 -- of jobs, looked at for each that is added: those without a record stay few

-- Call `action` once for each medium that a job's record names. `-` stands for one that was not fetched yet.
-- @rare
local function for_each_media(names, action)
  local seen = { ['-'] = true }
  for name in string.gmatch(names or '', '%S+') do
    if not seen[name] then
      seen[name] = true
      action(name)
    end
  end
end

-- The first of some names (with commas) under which a medium is stored; nil if it is not.
local function stored_media(names)
  for name in string.gmatch(names, '[^,]+') do
    if redis.call('EXISTS', media_key(name)) == 1 then return name end
  end
end

-- The names of the media that a job brings, with spaces; or nil and the reply that refuses the job.
-- @rare
local function find_media(groups)
  local found = {}
  for group in string.gmatch(groups, '%S+') do
    local name = group == '-' and group or stored_media(group)
    if not name then return nil, { 'NO_MEDIA', #found } end
    found[#found + 1] = name
  end
  return table.concat(found, ' ')
end

-- Let the keys of a medium end by themselves if no sweep comes: after the time at which one would delete it.
local function expire_media(name, keep_until, now)
  for _, key in ipairs({ media_key(name), media_jobs_key(name) }) do
    redis.call('PEXPIRE', key, string.format('%.0f', keep_until - now + MEDIA_CHECK_MS))
  end
end

-- Keep a stored medium at least until some time.
local function keep_media(name, at, now)
  local keep_until = math.max(finite(redis.call('HGET', media_key(name), 'keep_until_ms'), 0), at)
  redis.call('HSET', media_key(name), 'keep_until_ms', string.format('%.0f', keep_until))
  if redis.call('PTTL', media_key(name)) >= 0 then expire_media(name, keep_until, now) end
  return keep_until
end

-- Keep media for a job that has not ended. Return the bytes that it reserves for them: those of each medium count once
-- per tenant, for one of the jobs that name it.
-- @rare
local function hold_media(id, names)
  local num_bytes = 0
  for_each_media(names, function(name)
    local f = redis.call('HMGET', media_key(name), 'holder', 'bytes')
    if not f[2] then return end -- it is gone: the attempt that needs it fails
    redis.call('ZADD', media_jobs_key(name), 0, id)
    redis.call('PERSIST', media_key(name))
    redis.call('PERSIST', media_jobs_key(name))
    if not f[1] then
      redis.call('HSET', media_key(name), 'holder', id)
      num_bytes = num_bytes + finite(f[2], 0)
    end
  end)
  return num_bytes
end

-- Note in a job's record what a worker needs to read its media.
-- @rare
local function note_media_keys(id, names)
  for_each_media(names, function(name)
    local f = redis.call('HMGET', media_key(name), 'key_id', 'object')
    if f[1] then note_seal_key(id, f[1]) end
    if f[2] then note_seal_key(id, READS_PAYLOADS) end
  end)
end

-- Let another job that has not ended reserve the bytes of a medium, if there is one.
local function pass_media_on(name, job, num_bytes)
  local next_id = redis.call('ZRANGEBYSCORE', media_jobs_key(name), 0, 0, 'LIMIT', 0, 1)[1]
  if not next_id or redis.call('EXISTS', job_key(next_id)) == 0 then
    redis.call('HDEL', media_key(name), 'holder')
    return
  end
  redis.call('HSET', media_key(name), 'holder', next_id)
  redis.call('HINCRBY', job_key(next_id), 'reserved_bytes', num_bytes)
  add_to_both(next_id, job, 'reserved', num_bytes)
end

-- Remove some jobs of a medium whose records are gone: one that is always in use is never looked up.
local function drop_some_media_jobs(name)
  for _, id in ipairs(redis.call('ZRANDMEMBER', media_jobs_key(name), ENTRIES_PER_END)) do
    if redis.call('EXISTS', job_key(id)) == 0 then redis.call('ZREM', media_jobs_key(name), id) end
  end
end

-- Do something with each medium of a record. A key of another type, which batchmill did not write, is left to the
-- sweep, which deletes it: it must not keep a job from ending or from being forgotten.
local function for_each_usable_media(names, now, action)
  for_each_media(names, function(name)
    local is_done, problem = pcall(action, name)
    if is_done then return end
    local reason = type(problem) == 'table' and problem.err or tostring(problem)
    if not string.find(reason, 'WRONGTYPE', 1, true) then error(problem, 0) end
    redis.call('ZADD', MEDIA_DUE, now, name)
  end)
end

-- A job has ended: its media are kept for their time to live from now on.
-- @rare
local function release_media(id, job, now)
  for_each_usable_media(job.media, now, function(name)
    local f = redis.call('HMGET', media_key(name), 'holder', 'bytes', 'ttl_ms')
    if not f[2] then return end
    redis.call('ZADD', media_jobs_key(name), 'XX', now, id)
    drop_some_media_jobs(name)
    local keep_until = keep_media(name, now + finite(f[3], 0), now)
    redis.call('ZADD', MEDIA_DUE, keep_until, name)
    if redis.call('ZCOUNT', media_jobs_key(name), 0, 0) == 0 then expire_media(name, keep_until, now) end
    if f[1] ~= id then return end
    local num_bytes = finite(f[2], 0)
    redis.call('HINCRBY', job_key(id), 'reserved_bytes', -num_bytes)
    pass_media_on(name, job, num_bytes)
  end)
end

local function delete_media(name, now)
  local object = redis.pcall('HGET', media_key(name), 'object')
  if type(object) == 'string' then redis.call('ZADD', PAYLOADS, now, object) end -- also if the index was lost
  redis.call('DEL', media_key(name), media_jobs_key(name))
  redis.call('ZREM', MEDIA_DUE, name)
end

-- Whether a job of a medium still has a record; the others are removed.
local function has_media_jobs(name)
  local ids = redis.call('ZRANGE', media_jobs_key(name), 0, MEDIA_JOBS_PER_LOOK - 1)
  for _, id in ipairs(ids) do
    if redis.call('EXISTS', job_key(id)) == 1 then return true end
    redis.call('ZREM', media_jobs_key(name), id)
  end
  return #ids == MEDIA_JOBS_PER_LOOK -- there may be more
end

-- A job is forgotten: delete its media, unless another job of the tenant names them.
local function forget_media(id, job, now)
  for_each_usable_media(job.media, now, function(name)
    redis.call('ZREM', media_jobs_key(name), id)
    if not has_media_jobs(name) then delete_media(name, now) end
  end)
end

-- Whether a job that has not ended names a medium. Those that were deleted by hand are removed.
local function is_media_held(name)
  local ids = redis.call('ZRANGEBYSCORE', media_jobs_key(name), 0, 0, 'LIMIT', 0, MEDIA_JOBS_PER_LOOK)
  for _, id in ipairs(ids) do
    local state = redis.pcall('HGET', job_key(id), 'state')
    if type(state) == 'string' and not TERMINAL[state] then return true end
    redis.call('ZREM', media_jobs_key(name), id)
  end
  return #ids == MEDIA_JOBS_PER_LOOK
end

local function sweep_one_media(name, now)
  if is_media_held(name) then
    redis.call('ZADD', MEDIA_DUE, now + MEDIA_CHECK_MS, name)
    return
  end
  local keep_until = finite(redis.call('HGET', media_key(name), 'keep_until_ms'), 0)
  if keep_until > now then
    redis.call('ZADD', MEDIA_DUE, keep_until, name)
  else
    delete_media(name, now)
  end
end

-- Delete media that are not needed any more. Return how many were looked up.
local function sweep_media(limit, now)
  local names = redis.call('ZRANGEBYSCORE', MEDIA_DUE, '-inf', now, 'LIMIT', 0, limit)
  for _, name in ipairs(names) do
    -- Keys of another type, which batchmill did not write, must not stop the sweep of all others.
    if not pcall(sweep_one_media, name, now) then
      delete_unless('hash', media_key(name)) -- these are reported
      delete_unless('zset', media_jobs_key(name))
      delete_media(name, now)
    end
  end
  return #names
end
