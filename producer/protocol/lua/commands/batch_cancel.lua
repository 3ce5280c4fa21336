-- Begin to cancel a batch, or fail it because its input was refused.
-- KEYS: none. ARGV: id, error JSON ('' = a user cancels it; otherwise its input was refused, and it fails unless all
-- its lines had arrived).
-- Reply: {CANCELLING}, {ALREADY_TERMINAL, state} or {UNKNOWN}.
-- @include batches, record, server
allow_writes_when_full()
local id, now = ARGV[1], now_ms()
local batch = load_batch(id)
if not batch then return { 'UNKNOWN' } end
if TERMINAL[batch.state] or (ARGV[2] ~= '' and batch.state ~= 'validating') then
  return { 'ALREADY_TERMINAL', batch.state }
end
start_batch_cancellation(id, ARGV[2], now)
return { 'CANCELLING' }
