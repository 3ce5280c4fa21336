-- Cancel the jobs that match a query and have not ended.
-- KEYS: none. ARGV: limit (index entries to examine), query.
-- Reply: {cursor ({} at the end), cancelled, cancelling, ended before}.
-- @include finish, guard, query, record, server
allow_writes_when_full()
local query, now = parse_query(2), now_ms()
local counts = { CANCELLED = 0, CANCELLING = 0, ALREADY_TERMINAL = 0 }
local entries, last = read_page(query, tonumber(ARGV[1]))
for _, entry in ipairs(entries) do
  guard_job(entry.id, nil, function()
    local job = load_job(entry.id)
    if not job or not matches_query(query, entry, job) then return end
    local outcome = request_cancel(entry.id, job, now)
    counts[outcome] = counts[outcome] + 1
  end)
end
return { cursor_reply(last), counts.CANCELLED, counts.CANCELLING, counts.ALREADY_TERMINAL }
