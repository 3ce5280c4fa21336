-- Keep media that are stored for a further time.
-- KEYS: none. ARGV: for each medium its names (with commas: any of them may be the stored one), and its keep_ms.
-- Reply: for each 1 if it is stored, else 0.
-- @include media, server
allow_writes_when_full()
local now, known = now_ms(), {}
for i = 1, #ARGV, 2 do
  local name = stored_media(ARGV[i])
  known[#known + 1] = name and 1 or 0
  if name then keep_media(name, now + tonumber(ARGV[i + 1]), now) end
end
return known
