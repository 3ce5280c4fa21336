-- The tokens that ended jobs have used: per day (UTC), tenant, API key and model, and per batch. They are counted in
-- the script that ends a job, and outlive its record.
-- @include foreign_keys, keys, record

local DAY_MS = 24 * 3600 * 1000
local MAX_DAYS = 800 -- that a day is kept, whatever the sweep is told
local MAX_ROWS_PER_DAY = 10000
local OTHER_ROWS = '::' -- what more rows than these are counted in together
local AMOUNTS = '%d %d %d %d %d' -- jobs, prompt, completion, cached, reasoning
local MAX_AMOUNT = 1e15 -- more is not an amount: Lua could not add to it exactly

-- The amounts in a text; one that another client has written counts as zeros, and so does each that is missing.
-- @rare
local function parse_amounts(text)
  local amounts = {}
  for number in string.gmatch(text, '%d+') do
    local amount = tonumber(number)
    amounts[#amounts + 1] = amount < MAX_AMOUNT and amount or 0
  end
  for i = 1, 5 do amounts[i] = amounts[i] or 0 end
  return amounts
end

-- A text of amounts, with more of each; false is none.
local function add_amounts(text, jobs, prompt, completion, cached, reasoning)
  if not text then return string.format(AMOUNTS, jobs, prompt, completion, cached, reasoning) end
  local a, b, c, d, e = string.match(text, '^(%d+) (%d+) (%d+) (%d+) (%d+)$')
  if not a or a + b + c + d + e >= MAX_AMOUNT then a, b, c, d, e = unpack(parse_amounts(text), 1, 5) end
  return string.format(AMOUNTS, a + jobs, b + prompt, c + completion, d + cached, e + reasoning)
end

-- Count the tokens of a job that ends: `used` lists prompt, completion, cached and reasoning tokens. If the job has
-- ended before and was retried, only the additional tokens are counted, and the job itself is not counted again. Return
-- what the record is to hold as `used_tokens`.
local function count_used_tokens(job, used, now)
  local added = { 1, unpack(used, 1, 4) }
  if job.used_tokens then
    for i, before in ipairs(parse_amounts(job.used_tokens)) do added[i] = math.max((added[i] or 0) - before, 0) end
  end
  local function with_added(text) return add_amounts(text, unpack(added, 1, 5)) end

  local day = math.floor(now / DAY_MS)
  local row = job.tenant .. ':' .. (job.api_key or '') .. ':' .. (job.model or '')
  local key = used_tokens_key(day)
  local stored = redis.pcall('HGET', key, row)
  local is_new = type(stored) ~= 'string'
  if is_new then
    delete_unless('hash', key)
    stored = nil
    if redis.call('HLEN', key) >= MAX_ROWS_PER_DAY then
      row = OTHER_ROWS
      stored = redis.call('HGET', key, row)
    end
    add_entry(USED_TOKENS, day, day)
  end
  redis.call('HSET', key, row, with_added(stored))
  if is_new and redis.call('PTTL', key) == -1 then redis.call('PEXPIRE', key, MAX_DAYS * DAY_MS) end
  local batch = job.batch and redis.pcall('HMGET', batch_key(job.batch), 'state', 'used_tokens')
  -- The end of a batch is final: what a retry adds later is not part of it.
  if batch and batch[1] and not TERMINAL[batch[1]] then
    redis.call('HSET', batch_key(job.batch), 'used_tokens', with_added(batch[2]))
  end
  return with_added(job.used_tokens)
end
