-- ARGV: id, error JSON ('' = someone cancels it; else its input was refused, and it fails, unless
-- all its lines had come in before).
-- Answers {CANCELLING}, {ALREADY_TERMINAL, state} or {UNKNOWN}.
write_even_when_full()
local id, now = ARGV[1], now_ms()
local batch = load_batch(id)
if not batch then return { 'UNKNOWN' } end
if TERMINAL[batch.state] or (ARGV[2] ~= '' and batch.state ~= 'validating') then
  return { 'ALREADY_TERMINAL', batch.state }
end
begin_to_cancel_batch(id, batch, ARGV[2], now)
return { 'CANCELLING' }
