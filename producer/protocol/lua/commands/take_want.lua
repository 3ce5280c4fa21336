-- Find a worker that asks for jobs and has fewer than half as many as the caller, in proportion to their speeds. Its
-- wish is gone then, so that no other worker gives to it at the same time.
-- KEYS: none. ARGV: session of the caller, model, identity of the engine, jobs that the caller holds, its speed (tokens
-- per second, 0 = not known), how many times as fast the other one must be (1 = of any speed), then queue and tenant of
-- what it could give, each pair once.
-- Reply: {session, jobs that it may take, jobs that it holds, its speed as text, then the number of each pair, from 1,
-- whose jobs may move} or {}.
-- @include foreign_keys, keys, pauses, server, wants
allow_writes_when_full()
local caller, model, identity, now = ARGV[1], ARGV[2], ARGV[3], now_ms()
delete_unless('hash', wants_key(model))
-- A running job goes on through a pause of its queue or tenant; one that was given away would wait.
local may_move = pairs_without_pause(ARGV, 7)
if #may_move == 0 then return {} end
local held, speed, least_speedup = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local found = find_want(model, caller, identity, held, speed, least_speedup, now) or {}
for i = 1, found[1] and #may_move or 0 do found[#found + 1] = may_move[i] end
return found
