-- Take one request, and the tokens that it may need, from the limits per minute of an API key. Both refill steadily: a
-- limit of 60 gives one back every second.
-- KEYS: none. ARGV: id of the key, requests per minute, tokens per minute ('' = no limit, each), tokens.
-- Reply: {1 if both were taken or 0 if neither was, ms until a repeated call would succeed, requests left, ms until all
-- are back, tokens left, ms until all are back}; -1 stands for a number left without a limit.
-- @include keys, server
local MINUTE_MS = 60000
local key, now = rate_key(ARGV[1]), now_ms()
local stored = redis.call('HMGET', key, 'requests', 'tokens', 'at_ms')
local elapsed_ms = math.max(0, now - (tonumber(stored[3] or nil) or 0))

-- The level of one limit: what is left, how much it may be, and how much of it the call needs.
local function level(limit_text, left_text, needed)
  local limit = tonumber(limit_text)
  if not limit then return nil end
  local left = (tonumber(left_text or nil) or limit) + elapsed_ms * limit / MINUTE_MS
  return { limit = limit, left = math.min(limit, left), needed = needed }
end

local function wait_ms(one) return math.ceil(math.max(0, one.needed - one.left) * MINUTE_MS / one.limit) end

local function report(one)
  if not one then return -1, 0 end
  return math.floor(one.left), math.ceil((one.limit - one.left) * MINUTE_MS / one.limit)
end

local levels = { requests = level(ARGV[2], stored[1], 1), tokens = level(ARGV[3], stored[2], tonumber(ARGV[4])) }
local wait = 0
for _, one in pairs(levels) do wait = math.max(wait, wait_ms(one)) end
for name, one in pairs(levels) do
  if wait == 0 then one.left = one.left - one.needed end
  redis.call('HSET', key, name, string.format('%.6f', one.left), 'at_ms', now)
end
redis.call('PEXPIRE', key, MINUTE_MS)
local requests_left, requests_ms = report(levels.requests)
local tokens_left, tokens_ms = report(levels.tokens)
return { wait == 0 and 1 or 0, wait, requests_left, requests_ms, tokens_left, tokens_ms }
