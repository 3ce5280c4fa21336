-- Draft corpora: which finished jobs of a tenant others of the same template may take draft tokens from. A corpus has
-- their ids only: the tokens are those of their records, so they are erased, expire and are sealed with these.
-- @include keys

local MAX_TENANT_CORPORA = 64
local MAX_CORPORA = 1024

-- @rare
local function drop_corpus(tenant, digest)
  redis.call('DEL', corpus_key(tenant, digest))
  redis.call('ZREM', tenant_corpora_key(tenant), digest)
  redis.call('ZREM', CORPORA, tenant .. ':' .. digest)
end

-- Drop the corpora that have learned nothing for the longest time, of a tenant and of all.
-- @rare
local function drop_oldest_corpora(tenant)
  local surplus = redis.call('ZCARD', tenant_corpora_key(tenant)) - MAX_TENANT_CORPORA
  if surplus > 0 then
    for _, digest in ipairs(redis.call('ZRANGE', tenant_corpora_key(tenant), 0, surplus - 1)) do
      drop_corpus(tenant, digest)
    end
  end
  surplus = redis.call('ZCARD', CORPORA) - MAX_CORPORA
  if surplus > 0 then
    for _, entry in ipairs(redis.call('ZRANGE', CORPORA, 0, surplus - 1)) do
      drop_corpus(string.match(entry, '^(.*):(.*)$'))
    end
  end
end

-- Note that a job is being completed, and that its output has tokens. `digest` names the corpus, which keeps the newest
-- `most` jobs.
-- @rare
local function note_in_corpus(id, job, digest, most, now)
  local key, until_ms = corpus_key(job.tenant, digest), now + job.result_ttl_ms
  redis.call('ZADD', key, until_ms, id)
  redis.call('ZREMRANGEBYRANK', key, 0, -most - 1)
  redis.call('PEXPIRE', key, job.result_ttl_ms)
  local is_new = redis.call('ZADD', tenant_corpora_key(job.tenant), now, digest) == 1
  redis.call('ZADD', CORPORA, now, job.tenant .. ':' .. digest)
  redis.call('PEXPIRE', tenant_corpora_key(job.tenant), job.result_ttl_ms)
  redis.call('PEXPIRE', CORPORA, job.result_ttl_ms)
  if is_new then drop_oldest_corpora(job.tenant) end
end

-- @rare
local function leave_corpus(id, job)
  redis.call('ZREM', corpus_key(job.tenant, job.corpus), id)
end
