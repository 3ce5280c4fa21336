-- Store a dead letter.
-- KEYS: none. ARGV: id, kind, reason, payload, source, spare id, tenant ('' = unknown), tags (comma-separated). If the
-- first id belongs to a letter with other content, the new letter is stored under the spare id; without a spare id ('')
-- it replaces the old one. Tenant and tags, if the payload names them, let `forget_where` find the letter.
-- Reply: the id that the letter is stored under.
-- @include dead_letters, keys, leftovers, server
local id, kind, payload, spare_id, now = ARGV[1], ARGV[2], ARGV[4], ARGV[6], now_ms()
local key = dead_key(id)
if spare_id ~= '' and redis.call('TYPE', key).ok == 'hash' then
  local known = redis.call('HMGET', key, 'kind', 'payload')
  if known[1] ~= kind or known[2] ~= payload then id = spare_id end
end
add_dead_letter(id, kind, ARGV[3], payload, ARGV[5], now)
if ARGV[7] ~= '' or ARGV[8] ~= '' then
  keep_leftover(id, { tenant = ARGV[7] ~= '' and ARGV[7] or nil, tags = ARGV[8] }, '', 0, now)
end
return id
