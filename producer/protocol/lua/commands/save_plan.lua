-- Save the state of running jobs' plans, from which another attempt continues (a beam search).
-- KEYS: none. ARGV: for each job: id, fence and identity of the engine in one argument, with spaces; state.
-- Reply: a list with one status per job: OK or FENCED.
-- @include guard, keys, record, sealed, server
allow_writes_when_full()

local function save(id, fence, identity, state)
  if not may_write_output(load_lease(id), fence, identity) then return 'FENCED' end
  local piece = split_sealed(state)
  if piece then note_seal_key(id, piece.key_id) end
  redis.call('HSET', job_key(id), 'plan_state', state, 'plan_identity', identity)
  redis.call('HDEL', job_key(id), 'lost_leases') -- it moves, although it has no new token
  return 'OK'
end

local statuses = {}
for i = 1, #ARGV, 2 do
  local id, fence, identity = string.match(ARGV[i], '^(%S+) (%S*) (%S*)$')
  statuses[#statuses + 1] = guard_job(id, 'FENCED', function() return save(id, fence, identity, ARGV[i + 1]) end)
end
return statuses
