-- Errors in one job's keys: any client of Redis may have written them, and they must not stop another job.
-- @include keys, record, usage

-- Fields of a record that are whole numbers if they are set.
local INTEGER_FIELDS = { 'fence', 'attempts', 'announcements', 'suspect', 'crashes', 'restarts', 'charge',
  'output_events', 'output_told', 'output_due_ms', 'enqueued_at_ms', 'started_at_ms', 'result_ttl_ms',
  'cost', 'run', 'reserved_bytes', 'retries', 'lost_leases', 'passed_over', 'key_refusals', 'version_refusals' }

-- Whether scripts can work with a job's keys.
-- @rare
local function is_valid_job(id)
  if not pcall(read_valid_job, id) then return false end
  for _, key in ipairs({ tokens_key(id), text_key(id), thoughts_key(id) }) do
    local kind = redis.call('TYPE', key).ok
    if kind ~= 'string' and kind ~= 'none' then return false end
  end
  local seals_kind = redis.call('TYPE', seals_key(id)).ok
  if seals_kind ~= 'hash' and seals_kind ~= 'none' then return false end
  if redis.call('STRLEN', tokens_key(id)) % 4 > 0 then return false end
  for _, value in ipairs(redis.call('HMGET', job_key(id), unpack(INTEGER_FIELDS))) do
    if value and (#value > 18 or not string.match(value, '^%-?%d+$')) then return false end
  end
  return redis.call('HEXISTS', job_key(id), 'doc') == 1
    and redis.call('HEXISTS', job_key(id), 'enqueued_at_ms') == 1
end

-- Run an action, with these arguments, on one job. If it fails because of the job's own keys, mark the job for the
-- sweep to end and return `fallback`: if the whole call failed instead, its caller would repeat it forever. Any other
-- error is raised: it is not this job's fault.
local function guard_job(id, fallback, action, ...)
  local ok, result = pcall(action, ...)
  local is_written, problem = true, nil
  -- Also what a failed action has counted.
  if next(usage_changes) or next(usage_values) then is_written, problem = pcall(write_usage) end
  if ok and is_written then return result end
  if ok then result = problem end
  if is_valid_job(id) then error(result, 0) end
  mark_unusable(id, result)
  return fallback
end
