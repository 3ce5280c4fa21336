-- Announce the jobs whose delay is over.
-- KEYS: none. ARGV: limit.
-- Reply: how many delays ended.
-- @include announce, server
allow_writes_when_full()
keep_time()
return announce_due_jobs(tonumber(ARGV[1]), now_ms())
