-- ARGV: limit (index entries to look at), query. Forgets the jobs that match and have ended.
-- Answers {cursor ({} at the end), forgotten, active (kept)}.
write_even_when_full()
local query = read_query(2)
local num_forgotten, num_active, now = 0, 0, now_ms()
local entries, last = index_page(query, tonumber(ARGV[1]))
for _, entry in ipairs(entries) do
  local job = load_job(entry.id)
  if job and is_meant(query, entry, job) then
    if TERMINAL[job.state] then
      forget(entry.id, job, now)
      num_forgotten = num_forgotten + 1
    else
      num_active = num_active + 1
    end
  end
end
return { cursor_reply(last), num_forgotten, num_active }
