-- Receivers: URLs that a tenant has registered for types of events. They get events of all its jobs and batches, beside
-- the webhooks that jobs and batches name themselves.
-- @include keys

local MAX_RECEIVERS = 20 -- of a tenant; `store/receivers.py` has the same number

-- Whether a tenant has receivers, or a key in their place that batchmill did not write.
local function has_receivers(tenant) return redis.pcall('HLEN', receivers_key(tenant)) ~= 0 end

-- The receivers of a tenant that want some event: a list of {id, url, types}. What batchmill did not write is skipped.
local function load_receivers(tenant)
  local found, fields = {}, redis.pcall('HGETALL', receivers_key(tenant))
  if fields.err then return found end
  for i = 1, math.min(#fields, 2 * MAX_RECEIVERS), 2 do
    local ok, receiver = pcall(cjson.decode, fields[i + 1])
    local is_valid = ok and type(receiver) == 'table' and type(receiver.url) == 'string'
      and type(receiver.event_types) == 'table' and string.match(fields[i], '^we_%x+$')
    if is_valid then found[#found + 1] = { id = fields[i], url = receiver.url, types = receiver.event_types } end
  end
  return found
end

-- The URLs of receivers that get events of jobs.
local function urls_of_job_receivers(tenant)
  local urls = {}
  for _, receiver in ipairs(load_receivers(tenant)) do
    for _, wanted in ipairs(receiver.types) do
      if type(wanted) == 'string' and string.sub(wanted, 1, 6) ~= 'batch.' then
        urls[#urls + 1] = receiver.url
        break
      end
    end
  end
  return urls
end
