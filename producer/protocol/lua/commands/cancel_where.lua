-- ARGV: limit (index entries to look at), query. Cancels the jobs that match and have not ended.
-- Answers {cursor ({} at the end), cancelled, cancelling, ended before}.
write_even_when_full()
local query, now = read_query(2), now_ms()
local counts = { CANCELLED = 0, CANCELLING = 0, ALREADY_TERMINAL = 0 }
local entries, last = index_page(query, tonumber(ARGV[1]))
for _, entry in ipairs(entries) do
  guarded(entry.id, nil, function()
    local job = load_job(entry.id)
    if not job or not is_meant(query, entry, job) then return end
    local outcome = cancel_or_ask(entry.id, job, now)
    counts[outcome] = counts[outcome] + 1
  end)
end
return { cursor_reply(last), counts.CANCELLED, counts.CANCELLING, counts.ALREADY_TERMINAL }
