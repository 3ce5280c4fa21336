-- The tokens that ended jobs have used: per day (UTC), tenant, API key and model, and per batch. They are counted in
-- the script that ends a job, and outlive its record.
-- @include counters, foreign_keys, keys, record

local DAY_MS = 24 * 3600 * 1000
local MAX_DAYS = 800 -- that a day is kept, whatever the sweep is told
local MAX_ROWS_PER_DAY = 10000
local OTHER_ROWS = '::' -- what more rows than these are counted in together

-- Count the tokens of a job that ends: `used` lists prompt, completion, cached and reasoning tokens. If the job has
-- ended before and was retried, only the additional tokens are counted, and the job itself is not counted again. Return
-- what the record is to hold as `used_tokens`.
local function count_used_tokens(job, used, now)
  -- Numbers in the order jobs, prompt, completion, cached, reasoning; text that is not such a list counts as zeros.
  local function parse_amounts(text)
    local amounts = {}
    for number in string.gmatch(type(text) == 'string' and text or '', '%d+') do
      amounts[#amounts + 1] = finite(number, 0)
    end
    for i = 1, 5 do amounts[i] = amounts[i] or 0 end
    return amounts
  end

  local before, added = parse_amounts(job.used_tokens), {}
  local total = { 1, unpack(used, 1, 4) }
  for i = 1, 5 do added[i] = math.max(total[i] - before[i], 0) end

  local function sum_text(amounts)
    for i = 1, 5 do amounts[i] = amounts[i] + added[i] end
    return string.format('%.0f %.0f %.0f %.0f %.0f', unpack(amounts, 1, 5))
  end

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
  redis.call('HSET', key, row, sum_text(parse_amounts(stored)))
  if is_new and redis.call('PTTL', key) == -1 then redis.call('PEXPIRE', key, MAX_DAYS * DAY_MS) end
  local batch = job.batch and redis.pcall('HMGET', batch_key(job.batch), 'state', 'used_tokens')
  -- The end of a batch is final: what a retry adds later is not part of it.
  if batch and batch[1] and not TERMINAL[batch[1]] then
    redis.call('HSET', batch_key(job.batch), 'used_tokens', sum_text(parse_amounts(batch[2])))
  end
  return sum_text(before)
end
