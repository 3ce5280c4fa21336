-- Erase the jobs that match a query and have ended.
-- KEYS: none. ARGV: limit (index entries to examine), query.
-- Reply: {cursor ({} at the end), forgotten, active (kept)}.
-- @include erase, query, record, server
allow_writes_when_full()
local query = parse_query(2)
local num_forgotten, num_active, now = 0, 0, now_ms()
local entries, last = read_page(query, tonumber(ARGV[1]))
for _, entry in ipairs(entries) do
  local job = load_job(entry.id)
  if job and matches_query(query, entry, job) then
    if TERMINAL[job.state] then
      erase_job(entry.id, job, now)
      num_forgotten = num_forgotten + 1
    else
      num_active = num_active + 1
    end
  end
end
return { cursor_reply(last), num_forgotten, num_active }
