-- The end of a record that no batchmill wrote; shared by all scripts like prelude.lua, which comes
-- before it and names it first.

-- Ends what can be ended, by its own way or by force, and keeps a dead letter.
bury = function(id, why, now)
  why = type(why) == 'table' and why.err or tostring(why)
  local is_hash = redis.call('TYPE', job_key(id)).ok == 'hash'
  local f = is_hash and redis.call('HMGET', job_key(id), 'doc', 'tenant', 'tags') or {}
  add_dead_letter(id, 'job', 'unusable_record: ' .. why, f[1] or '', '', now)
  local text = error_json('unusable_record', 'a key of the job holds what no batchmill wrote')
  if not pcall(function() finish(id, read_job(id), 'failed', '', text, now) end) then
    for _, index in ipairs({ LEASES, DEADLINES, SCHEDULED }) do redis.call('ZREM', index, id) end
    for _, queue in ipairs(redis.call('SMEMBERS', QUEUES)) do
      redis.call('ZREM', queued_key(queue), id)
    end
    for _, state in ipairs(STATES) do redis.call('ZREM', state_index(state), id) end
    if is_hash then
      redis.call('HSET', job_key(id), 'state', 'failed', 'finished_at_ms', now, 'error', text)
      local labels = { tenant = f[2] or nil, tags = f[3] or nil }
      redis.call('ZADD', state_index('failed'), now, id)
      redis.call('ZADD', EXPIRING, now + DEAD_TTL_MS, expiring_entry(id, 'failed', labels))
    end
    redis.call('PUBLISH', channel(id), '{"state":"failed"}')
  end
  for _, key in ipairs({ job_key(id), tokens_key(id), text_key(id) }) do
    if redis.call('PTTL', key) == -1 then redis.call('PEXPIRE', key, DEAD_TTL_MS) end
  end
end
