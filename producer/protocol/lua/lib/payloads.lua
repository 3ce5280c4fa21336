-- Objects outside Redis that hold content of jobs (`protocol/payloads.py`). PAYLOADS has each of them from before it is
-- written until nothing refers to it, by the time at which this is looked up. Then PAYLOADS_UNUSED has it until it is
-- deleted.
-- @include keys

local REFERENCE_MAGIC = '\181BMR'
local PAYLOAD_CHECK_MS = 3600 * 1000

-- The name of the object that a value refers to, and the id of the key that sealed it ('-' = none); nil if the value is
-- not a reference.
local function split_reference(value)
  if string.sub(value, 1, #REFERENCE_MAGIC) ~= REFERENCE_MAGIC then return nil end
  return string.match(value, '^([%w_.-]+) %d+ %x+ ([%w_.-]+)$', #REFERENCE_MAGIC + 1)
end

-- Whether the object of a call exists still. It is due at once: unless the call comes to store the reference
-- (`keep_payload`), the next sweep deletes it.
-- @rare
local function is_payload_noted(name, now)
  redis.call('ZADD', PAYLOADS, 'XX', now, name)
  return redis.call('ZSCORE', PAYLOADS, name) ~= false
end

-- Note in a job's record that it refers to an object.
-- @rare
local function keep_payload(id, name, known, now)
  redis.call('HSET', job_key(id), 'payloads', known and known .. ' ' .. name or name)
  redis.call('ZADD', PAYLOADS, 'XX', now + PAYLOAD_CHECK_MS, name)
end

-- Look up at `at` whether the objects of a job are needed still.
-- @rare
local function check_payloads(job, at)
  for name in string.gmatch(job.payloads or '', '%S+') do redis.call('ZADD', PAYLOADS, 'XX', at, name) end
end
