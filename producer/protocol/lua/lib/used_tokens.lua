-- The tokens that ended jobs have used: per day (UTC), tenant, API key and model, and per batch. They are counted in
-- the script that ends a job, and outlive its record.
-- @include counters, foreign_keys, keys, record

local DAY_MS = 24 * 3600 * 1000
local MAX_DAYS = 800 -- that a day is kept, whatever the sweep is told
local MAX_ROWS_PER_DAY = 10000
local OTHER_ROWS = '::' -- what more rows than these are counted in together

-- Count the tokens of a job that ends: `used` lists prompt, completion and cached tokens. If the job has ended before
-- and was retried, only the additional tokens are counted, and the job itself is not counted again.
local function count_used_tokens(id, job, used, now)
  -- Numbers in the order jobs, prompt, completion, cached; text that is not such a list counts as zeros.
  local function parse_amounts(text)
    local amounts = {}
    for number in string.gmatch(type(text) == 'string' and text or '', '%d+') do
      amounts[#amounts + 1] = finite(number, 0)
    end
    for i = 1, 4 do amounts[i] = amounts[i] or 0 end
    return amounts
  end

  local f = redis.call('HMGET', job_key(id), 'used_tokens', 'api_key', 'model', 'batch')
  local before, added = parse_amounts(f[1]), {}
  local total = { 1, used[1], used[2], used[3] }
  for i = 1, 4 do added[i] = math.max(total[i] - before[i], 0) end

  local function add_amounts(key, field, stored)
    local amounts = parse_amounts(stored)
    for i = 1, 4 do amounts[i] = amounts[i] + added[i] end
    redis.call('HSET', key, field, string.format('%.0f %.0f %.0f %.0f', unpack(amounts, 1, 4)))
  end

  add_amounts(job_key(id), 'used_tokens', f[1])
  local day, row = math.floor(now / DAY_MS), job.tenant .. ':' .. (f[2] or '') .. ':' .. (f[3] or '')
  local key = used_tokens_key(day)
  delete_unless('hash', key)
  local stored = redis.call('HGET', key, row)
  if not stored then
    if redis.call('HLEN', key) >= MAX_ROWS_PER_DAY then
      row = OTHER_ROWS
      stored = redis.call('HGET', key, row)
    end
    add_entry(USED_TOKENS, day, day)
  end
  add_amounts(key, row, stored)
  if redis.call('PTTL', key) == -1 then redis.call('PEXPIRE', key, MAX_DAYS * DAY_MS) end
  if not f[4] or redis.call('TYPE', batch_key(f[4])).ok ~= 'hash' then return end
  local batch = redis.call('HMGET', batch_key(f[4]), 'state', 'used_tokens')
  -- The end of a batch is final: what a retry adds later is not part of it.
  if batch[1] and not TERMINAL[batch[1]] then add_amounts(batch_key(f[4]), 'used_tokens', batch[2]) end
end
