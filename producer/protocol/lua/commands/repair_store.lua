-- Repair what writing to Redis by hand, or an eviction, has torn apart: malformed records, jobs that are not where
-- their state says they must be, and wrong counters. Workers call it after each sweep.
-- KEYS: none. ARGV: limit (jobs per kind and call), repair_interval_ms (between two walks over all unfinished jobs; ''
-- for none) and unserved_ttl_ms (a job without a deadline expires if no worker has served its queue for that time; ''
-- for never).
-- Reply: {expired, recounted, entries of backlogs dropped, keys of another type that were deleted...}.
-- @include announce, foreign_keys, recount, repair, server, unusable
allow_writes_when_full()
local limit, interval_ms, now = tonumber(ARGV[1]), tonumber(ARGV[2] or nil), now_ms()
expire_unserved_after(tonumber(ARGV[3] or nil))
local num_failed = fail_unusable_jobs(limit, now) -- marked by other scripts
-- How much such records added to the counters is unknown, as it is for records deleted by hand.
local num_recounted = walk_unfinished_jobs(num_failed > 0, limit, interval_ms, now)
return { unserved.num_expired, num_recounted, num_dropped, unpack(deleted_keys) }
