-- Erase everything that is stored about a job or a batch that has ended, its dead letters included. The bare id is kept
-- for an hour, so that a call that is repeated after a lost reply differs from a call for an id that never existed.
-- KEYS: none. ARGV: id.
-- Reply: {FORGOTTEN}, {ACTIVE, state} or {UNKNOWN}.
-- @include dead_letters, erase, keys, leftovers, record, server
allow_writes_when_full()
local FORGOTTEN_TTL_MS = 3600 * 1000
local id = ARGV[1]
local job = load_job(id, 'corpus') or load_leftover(id)
local state = job and unfinished_state(id, job)
if state then return { 'ACTIVE', state } end
if job then
  erase_job(id, job, now_ms())
elseif delete_dead_letter(id) then -- of a message: its bytes may contain a prompt
  redis.call('DEL', leftover_key(id))
elseif redis.call('EXISTS', forgotten_key(id)) == 0 then
  return { 'UNKNOWN' }
end
redis.call('SET', forgotten_key(id), '', 'PX', FORGOTTEN_TTL_MS)
return { 'FORGOTTEN' }
