-- The memory of the server, and the limit on what is stored and promised.
-- @include counters, keys

local MAX_AGE_MS = 200 -- of a reading: INFO takes longer than the rest of a submission
local RECORD_BYTES = 2048 -- of a waiting job besides its document: record and index entries

-- Bytes that count against `maxmemory`, and that limit (0: there is none). Read by whoever submits, and kept for the
-- next. A user without the right to call INFO finds what others have read, or no limit.
local function read_memory(now)
  local known = redis.call('HMGET', MEMORY, 'at_ms', 'used_bytes', 'max_bytes')
  local at, known_used, known_max = finite(known[1], 0), finite(known[2], -1), finite(known[3], -1)
  if known_used >= 0 and known_max >= 0 and at <= now and now - at < MAX_AGE_MS then return known_used, known_max end
  local info = redis.pcall('INFO', 'memory')
  if type(info) ~= 'string' then return 0, 0 end
  local function read(name) return tonumber(string.match(info, '\n' .. name .. ':(%d+)') or 0) end
  local used = read('used_memory') - read('mem_not_counted_for_evict')
  local max = read('maxmemory')
  redis.call('HSET', MEMORY, 'at_ms', now, 'used_bytes', used, 'max_bytes', max)
  return used, max
end

-- The reply to a job that does not fit into a share of `maxmemory`; nil if it fits. Counted are the memory in use,
-- what the outputs of unfinished jobs may still take, and the job itself.
local function memory_reply(percent, usage, document_bytes, reserved_bytes, now)
  if not percent then return end
  local used, max = read_memory(now)
  if max == 0 then return end
  local needed = document_bytes + RECORD_BYTES + reserved_bytes
  local total = used + usage.reserved + needed
  local limit = math.floor(max * tonumber(percent) / 100)
  if total > limit then
    local function text(number) return string.format('%.0f', number) end
    return { 'FULL', 'max_memory_percent', text(total), text(limit), text(needed) }
  end
  -- Until the next reading.
  increment(MEMORY, 'used_bytes', document_bytes + RECORD_BYTES)
end
