-- Ask for jobs that other workers hold, because the caller's queues are empty; or stop asking.
-- KEYS: none. ARGV: session, model, identity of the engine, milliseconds for which the wish counts, jobs that the
-- caller may take (0 = stop asking, and let others have what was handed to it), jobs that it holds, its speed (tokens
-- per second, 0 = not known), then its queues.
-- Reply: 1 if the wish was noted, else 0.
-- @include foreign_keys, keys, server, wants
allow_writes_when_full()
local session, model, now = ARGV[1], ARGV[2], now_ms()
delete_unless('hash', wants_key(model))
delete_unless('list', handed_key(session))
if tonumber(ARGV[5]) == 0 then
  drop_want(model, session)
  announce_handed_to_all(session, now)
  return 0
end

-- Whether jobs wait that the caller could take without taking them from another worker.
local function has_own_work()
  if redis.call('EXISTS', handed_key(session)) == 1 then return true end
  for i = 8, #ARGV do
    if redis.call('EXISTS', announced_key(ARGV[i]), turns_key(ARGV[i])) > 0 then return true end
  end
  return false
end

if has_own_work() then
  drop_want(model, session)
  return 0
end
note_want(model, session, now + tonumber(ARGV[4]), ARGV[5], ARGV[6], ARGV[7], ARGV[3])
return 1
