-- Workers that ask for jobs that others hold, and what was handed to them.
-- @include announce, keys, record

local WANTS_READ = 16 -- wishes that one call looks at, chosen at random, however many workers ask
local LEAST_RATIO = 2 -- of the loads of giver and taker; a smaller difference is not worth what is computed again
local MAX_HANDED = 500 -- messages of one session that one call announces to all workers

-- The first word of the value is when the wish ends; the identity comes last, because it may contain spaces.
local function note_want(model, session, until_ms, num_places, num_jobs, speed, identity)
  local value = table.concat({ until_ms, num_places, num_jobs, speed, identity }, ' ')
  redis.call('HSET', wants_key(model), session, value)
  redis.call('PEXPIREAT', wants_key(model), until_ms)
end

local function drop_want(model, session) redis.call('HDEL', wants_key(model), session) end

-- Take a wish of another session with an engine of the same identity that is much less loaded; nil if there is none.
-- A wish to which not even one job is due is left for others.
-- `least_speedup`: how many times as fast as the caller it must be; 1 = of any speed.
local function find_want(model, caller, identity, held, speed, least_speedup, now)
  local found = redis.call('HRANDFIELD', wants_key(model), WANTS_READ, 'WITHVALUES')
  for i = 1, #found, 2 do
    local session = found[i]
    local until_ms, num_places, num_jobs, other_speed, wanted =
      string.match(found[i + 1], '^(%d+) (%d+) (%d+) ([%d.]+) (.*)$')
    if not until_ms or tonumber(until_ms) <= now then
      drop_want(model, session)
    elseif session ~= caller and wanted == identity then
      local mine, theirs = speed, tonumber(other_speed) or 0
      if mine <= 0 or theirs <= 0 then mine, theirs = 1, 1 end
      local is_fast_enough = least_speedup <= 1 or theirs >= least_speedup * mine
      local ours, due = held * theirs, held * theirs - tonumber(num_jobs) * mine
      if is_fast_enough and ours > LEAST_RATIO * tonumber(num_jobs) * mine and due >= mine + theirs then
        drop_want(model, session)
        return { session, tonumber(num_places), tonumber(num_jobs), other_speed }
      end
    end
  end
end

-- Announce what was handed to a session to all workers: it does not take it.
local function announce_handed_to_all(session, now)
  for _ = 1, MAX_HANDED do
    local message = redis.call('LPOP', handed_key(session))
    if not message then return end
    local ok, headers = pcall(function() return cjson.decode(message).headers end)
    local id = ok and type(headers) == 'table' and headers.id
    local job = type(id) == 'string' and load_job(id)
    if job and job.state == 'queued' then announce_job(id, job.queue, true, now) end
  end
end
