-- Idempotency keys: one entry per tenant and key, which names the job that stands for it.
-- @include keys

-- Longer than any wait for a worker (`docs/protocol.md`, Idempotency). The repair of the sweep renews it while the job
-- has not ended, so an entry whose record was deleted by hand does not stay.
local UNFINISHED_KEY_TTL_MS = 60 * 24 * 3600 * 1000

-- The id and fingerprint behind a key; nil if there is none, or if its record is gone.
-- @rare
local function load_idempotency_entry(tenant, key)
  local known = redis.call('HMGET', idempotency_key(tenant, key), 'id', 'fingerprint')
  if not known[1] or redis.call('EXISTS', job_key(known[1])) == 0 then return nil end
  return { id = known[1], fingerprint = known[2] }
end

local function keep_idempotency_entry(job, ttl_ms)
  if not job.idempotency_key then return end
  redis.call('PEXPIRE', idempotency_key(job.tenant, job.idempotency_key), ttl_ms)
end

local function delete_idempotency_entry(id, job)
  local key = job.idempotency_key and idempotency_key(job.tenant, job.idempotency_key)
  if key and redis.pcall('HGET', key, 'id') == id then redis.call('DEL', key) end
end

-- Let the next job have a job's key, although the record stays.
local function free_idempotency_key(id, job)
  delete_idempotency_entry(id, job)
  redis.call('HDEL', job_key(id), 'idempotency_key')
  job.idempotency_key = nil
end
