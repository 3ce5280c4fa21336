-- LoRA adapters and steering vectors, by the names that jobs give them. A job keeps the digest that its name stood for
-- when it came, so that all of it is computed with one version.

-- The digest of what a job names in a field (`lora`, `steering`), of those in a hash; nil if it names nothing there; or
-- nil and the reply that refuses the job. A tenant that may not use an adapter does not learn that there is one.
-- @rare
local function find_adapter(job, field, adapters_key)
  if not job[field] then return nil end
  local ok, adapter = pcall(cjson.decode, redis.call('HGET', adapters_key, job[field]) or 'null')
  if not ok or type(adapter) ~= 'table' or type(adapter.digest) ~= 'string' then
    return nil, { 'NO_ADAPTER', 'unknown', '', field }
  end
  local tenants = type(adapter.tenants) == 'table' and adapter.tenants or {}
  local is_allowed = #tenants == 0
  for _, tenant in ipairs(tenants) do is_allowed = is_allowed or tenant == job.tenant end
  if not is_allowed then return nil, { 'NO_ADAPTER', 'unknown', '', field } end
  if adapter.model ~= job.model then return nil, { 'NO_ADAPTER', 'model', tostring(adapter.model), field } end
  return adapter.digest
end

-- Fingerprints of content that an adapter or a vector computes: those of its versions differ.
-- @rare
local function with_adapter(fingerprints, digest)
  if not digest then return fingerprints end
  return (string.gsub(fingerprints, '[^,]+', function(name) return name .. '+' .. digest end))
end
