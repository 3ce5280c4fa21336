-- Store a dead letter.
-- KEYS: none. ARGV: id, kind, reason, payload, source, names of the payload (as of a fingerprint), keeps_other ('1': a
-- letter of this id with other content stays, and nothing is stored; '': it is replaced), tenant ('' = unknown), tags
-- (comma-separated). Tenant and tags, if the payload names them, let `forget_where` find the letter.
-- Reply: 1, or 0 if another letter has the id.
-- @include dead_letters, fingerprint, keys, leftovers, server
local id, kind, payload, names, now = ARGV[1], ARGV[2], ARGV[4], ARGV[6], now_ms()
local key = dead_key(id)
if ARGV[7] == '1' and redis.call('TYPE', key).ok == 'hash' then
  local known = redis.call('HMGET', key, 'kind', 'payload', 'fingerprint')
  -- The payload may be sealed: then it is another text each time.
  local is_same = known[2] == payload or is_same_content(names, known[3])
  if known[1] ~= kind or not is_same then return 0 end
end
add_dead_letter(id, kind, ARGV[3], payload, ARGV[5], now)
redis.call('HSET', key, 'fingerprint', first_fingerprint(names))
if ARGV[8] ~= '' or ARGV[9] ~= '' then
  keep_leftover(id, { tenant = ARGV[8] ~= '' and ARGV[8] or nil, tags = ARGV[9] }, '', 0, now)
end
return 1
