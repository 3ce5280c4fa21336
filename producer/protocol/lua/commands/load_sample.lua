-- Store a sample of the load, once per interval for all programs together; the newest ones are kept.
-- KEYS: none. ARGV: the sample, milliseconds of an interval, number of samples that are kept.
-- Reply: 1 if it was stored, 0 if this interval has one.
-- @include foreign_keys, keys, server
local GRACE_MS = 3600000 -- for which the last samples are kept when no program stores any
local sample, interval_ms, max_samples = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
delete_unless('list', LOAD_HISTORY)
local now = now_ms()
local newest_ms = tonumber(string.match(redis.call('LINDEX', LOAD_HISTORY, 0) or '', '^(%d+) '))
if newest_ms and math.floor(newest_ms / interval_ms) >= math.floor(now / interval_ms) then return 0 end
redis.call('LPUSH', LOAD_HISTORY, string.format('%.0f ', now) .. sample)
redis.call('LTRIM', LOAD_HISTORY, 0, max_samples - 1)
redis.call('PEXPIRE', LOAD_HISTORY, interval_ms * max_samples + GRACE_MS)
return 1
