-- Numbers in hashes that all jobs share.

-- Add to a number and return the new one. Another program may have written text there: it counts as 0, because
-- otherwise no job could be submitted or ended until an operator deletes it.
local function increment(key, field, amount)
  local value = redis.pcall('HINCRBY', key, field, amount)
  if type(value) == 'number' then return value end
  redis.call('HSET', key, field, amount)
  return amount
end

-- The number in a field; `default` if it is missing, or its text is not a finite number.
local function finite(text, default)
  local value = text and tonumber(text)
  if value and value - value == 0 then return value end -- that of NaN, and of an infinity, is NaN
  return default
end
