-- Find a worker that asks for jobs and has fewer than half as many as the caller, in proportion to their speeds. Its
-- wish is gone then, so that no other worker gives to it at the same time.
-- KEYS: none. ARGV: session of the caller, model, identity of the engine, jobs that the caller holds, its speed (tokens
-- per second, 0 = not known).
-- Reply: {session, jobs that it may take, jobs that it holds, its speed as text} or {}.
-- @include foreign_keys, keys, pauses, server, wants
allow_writes_when_full()
local caller, model, identity, now = ARGV[1], ARGV[2], ARGV[3], now_ms()
delete_unless('hash', wants_key(model))
-- A running job goes on through a pause of its queue or tenant; one that was given away would wait.
if is_any_queue_paused() then return {} end
return find_want(model, caller, identity, tonumber(ARGV[4]), tonumber(ARGV[5]), now) or {}
