-- Erase the jobs that match a query and have ended, and the batches whose jobs all match it.
-- KEYS: none. ARGV: limit (index entries to examine), query.
-- Reply: {cursor ({} at the end), forgotten, active (kept)}.
-- @include erase, keys, leftovers, query, record, server
allow_writes_when_full()
local query = parse_query(2)
local num_forgotten, num_active, now = 0, 0, now_ms()
local leftovers = query.tag and leftover_tag_key(query.tag) or leftover_tenant_key(query.tenant)
local entries, last = read_page(query, tonumber(ARGV[1]), leftovers)
local seen = {} -- a job whose record still exists may be in both indexes
for _, entry in ipairs(entries) do
  local job = not seen[entry.id] and (load_job(entry.id, 'corpus') or load_leftover(entry.id))
  seen[entry.id] = true
  if job and matches_query(query, entry, job) then
    if unfinished_state(entry.id, job) then
      num_active = num_active + 1
    else
      erase_job(entry.id, job, now)
      num_forgotten = num_forgotten + 1
    end
  end
end
return { cursor_reply(last), num_forgotten, num_active }
