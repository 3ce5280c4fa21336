-- The history of a job's attempts: a JSON list in its record, with one object per claim that has ended. A running
-- attempt is in the record's own fields until it ends.
-- @include keys, record

-- Of a longer history, the first and the last attempts are kept: how the trouble began, and what happens now.
local FIRST_ATTEMPTS = 4
local LAST_ATTEMPTS = 16
local MAX_WORKER_BYTES = 200 -- of the worker's name
local MAX_HISTORY_BYTES = 65536 -- a longer history was not written here

-- Whether a value can be one attempt: an object without objects in it, which could be too deep for readers.
-- @rare
local function is_attempt(value)
  if type(value) ~= 'table' then return false end
  for _, field in pairs(value) do
    if type(field) ~= 'string' and type(field) ~= 'number' then return false end
  end
  return true
end

-- The attempts in a history; none if another client of Redis has overwritten it.
-- @rare
local function parse_history(text)
  if #text > MAX_HISTORY_BYTES then return {} end
  local ok, attempts = pcall(cjson.decode, text)
  if not ok or type(attempts) ~= 'table' then return {} end
  for _, attempt in ipairs(attempts) do
    if not is_attempt(attempt) then return {} end
  end
  return attempts
end

-- A field as a whole number; nil if it is not one, as in a forged record: JSON has neither NaN nor infinity.
local function whole_number(field)
  if field and #field <= 15 and string.match(field, '^%d+$') then return tonumber(field) end
end

-- The attempts in a history that are kept beside another one.
-- @rare
local function kept_attempts(text)
  local attempts, kept = parse_history(text), {}
  local num_attempts = #attempts
  for i = 1, num_attempts do
    if i <= FIRST_ATTEMPTS or i > num_attempts - LAST_ATTEMPTS + 1 then kept[#kept + 1] = attempts[i] end
  end
  return kept
end

local function append_attempt(text, attempt)
  local attempts = text and kept_attempts(text) or {}
  attempts[#attempts + 1] = attempt
  local ok, encoded = pcall(cjson.encode, attempts)
  return ok and encoded or cjson.encode({ attempt }) -- cjson reads NaN, but does not write it
end

-- The code in the JSON of an error; nil if there is none.
local function error_code(error_text)
  return string.match(error_text, '^{"code":"([%w_]+)"')
end

-- Return the history of a job with the attempt that ends now. `job.output_bytes` is the length of its stored tokens, if
-- that is known. `cause` is `completed`, `failed`, `cancelled` or
-- `expired`, or why the job goes back to its queue; `code` is that of an error, or nil.
local function history_with_end(id, job, cause, code, now)
  load_end_fields(id, job)
  return append_attempt(job.history, {
    attempt = whole_number(job.attempts),
    worker = string.sub(job.owner, 1, MAX_WORKER_BYTES),
    claimed_at_ms = whole_number(job.claimed_at_ms),
    ended_at_ms = now,
    tokens_at_claim = whole_number(job.claimed_tokens),
    tokens_at_end = (job.output_bytes or redis.call('STRLEN', tokens_key(id))) / 4,
    cause = cause,
    code = code,
  })
end
