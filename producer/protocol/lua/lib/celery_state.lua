-- The state of a plain Celery task that has not ended, as its sender's `AsyncResult` shows it. It changes with the
-- record, in one script, so that it never follows the end, which a worker reports. Text as Celery's backend writes it.
-- @include keys

local META = '{"status": "%s", "result": %s, "traceback": null, "children": [], "date_done": null, '
  .. '%s"task_id": "%s"}'
local EXCEPTION = '{"exc_type": "%s", "exc_message": [%s, %s], "exc_module": "batchmill.worker.errors"}'

-- Celery writes the group and the parent of a task into its result.
local function celery_relatives(id)
  local ok, headers = pcall(cjson.decode, redis.call('HGET', job_key(id), 'celery_headers') or '')
  local text = ''
  for field, name in pairs({ group = 'group_id', parent_id = 'parent_id' }) do
    local value = ok and type(headers) == 'table' and headers[field]
    if type(value) == 'string' then text = text .. '"' .. name .. '": ' .. cjson.encode(value) .. ', ' end
  end
  return text
end

-- Write a state; as in Celery, nothing follows SUCCESS. Return the text, nil if nobody waits for a result.
local function write_celery_state(id, job, status, result)
  if not job.celery_result then return end
  local key = celery_result_key(id)
  local start = redis.pcall('GETRANGE', key, 0, 31)
  if type(start) == 'string' and string.find(start, '"status": "SUCCESS"', 1, true) then return end
  local text = string.format(META, status, result, celery_relatives(id), id)
  redis.call('SET', key, text, 'PX', job.result_ttl_ms)
  return text
end

-- The same, and wake those who listen to the result. Only workers may publish to them.
-- @rare
local function show_celery_state(id, job, status, result)
  local text = write_celery_state(id, job, status, result)
  if text then redis.call('PUBLISH', celery_result_key(id), text) end
end

-- The job runs in this process.
-- @rare
local function show_celery_start(id, job, owner, pid)
  show_celery_state(id, job, 'STARTED', string.format('{"pid": %d, "hostname": %s}', pid, cjson.encode(owner)))
end

-- Why a job waits for another attempt.
local function celery_exception(kind, code, message)
  return string.format(EXCEPTION, kind, cjson.encode(code), cjson.encode(message))
end
