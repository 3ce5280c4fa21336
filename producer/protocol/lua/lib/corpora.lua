-- Draft corpora: which finished jobs of a tenant others of the same template may take draft tokens from. A corpus has
-- their ids only: the tokens are those of their records, so they are erased, expire and are sealed with these.
-- @include foreign_keys, keys

local MAX_TENANT_CORPORA = 64
local MAX_CORPORA = 1024
local MAX_DROPPED_AT_ONCE = 10 -- normally it is one

-- @rare
local function drop_corpus(tenant, digest)
  redis.call('DEL', corpus_key(tenant, digest))
  redis.pcall('ZREM', tenant_corpora_key(tenant), digest) -- of another tenant: its key may have another type
  redis.call('ZREM', CORPORA, tenant .. ':' .. digest)
end

-- Drop the corpora that have learned nothing for the longest time, of a tenant and of all.
-- @rare
local function drop_oldest_corpora(tenant)
  local surplus = math.min(redis.call('ZCARD', tenant_corpora_key(tenant)) - MAX_TENANT_CORPORA, MAX_DROPPED_AT_ONCE)
  if surplus > 0 then
    for _, digest in ipairs(redis.call('ZRANGE', tenant_corpora_key(tenant), 0, surplus - 1)) do
      drop_corpus(tenant, digest)
    end
  end
  surplus = math.min(redis.call('ZCARD', CORPORA) - MAX_CORPORA, MAX_DROPPED_AT_ONCE)
  if surplus > 0 then
    for _, entry in ipairs(redis.call('ZRANGE', CORPORA, 0, surplus - 1)) do
      local owner, digest = string.match(entry, '^(.*):(.*)$')
      if owner then drop_corpus(owner, digest) else redis.call('ZREM', CORPORA, entry) end
    end
  end
end

-- Let a key live for at least `ttl_ms`. It is never shortened, because the records of other jobs may live longer.
-- @rare
local function live_at_least(key, ttl_ms)
  if redis.call('PEXPIRE', key, ttl_ms, 'GT') == 0 then redis.call('PEXPIRE', key, ttl_ms, 'NX') end
end

-- Note that a job is being completed, and that its output has tokens. `digest` names the corpus, which keeps the newest
-- `most` jobs. A key of another type, which batchmill did not write, must not keep the job from ending.
-- @rare
local function note_in_corpus(id, job, digest, most, now)
  local key, of_tenant, ttl_ms = corpus_key(job.tenant, digest), tenant_corpora_key(job.tenant), job.result_ttl_ms
  add_entry(key, now + ttl_ms, id)
  redis.call('ZREMRANGEBYRANK', key, 0, -most - 1)
  local is_new = add_entry(of_tenant, now, digest) == 1
  add_entry(CORPORA, now, job.tenant .. ':' .. digest)
  for _, each in ipairs({ key, of_tenant, CORPORA }) do live_at_least(each, ttl_ms) end
  if is_new then drop_oldest_corpora(job.tenant) end
end

-- @rare
local function leave_corpus(id, job)
  redis.pcall('ZREM', corpus_key(job.tenant, job.corpus), id) -- its key may have another type
end
