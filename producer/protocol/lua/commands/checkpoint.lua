-- Save new tokens of running jobs and extend their leases.
-- KEYS: none. ARGV: lease_ms, then for each job: id, fence, identity of the engine that computed the tokens ('' = not
-- known), position (tokens), text position and thought position (bytes) in one argument, with spaces between them;
-- token bytes; text; thoughts.
-- Reply: a list with one status per job: OK, FENCED, GAP or CANCEL_REQUESTED.
-- @include events, guard, keys, output, record, server
allow_writes_when_full()
local lease_ms, now = tonumber(ARGV[1]), now_ms()
local statuses, leases = {}, {}

local function save_output(id, fence, identity, position, text_position, thought_position, i)
  local job = load_lease(id)
  if not may_write_output(job, fence, identity) then return 'FENCED' end
  local output_bytes = append_tokens(id, position * 4, ARGV[i + 1])
  if not output_bytes then return 'GAP' end
  append_text(id, 'text', text_position, ARGV[i + 2])
  append_text(id, 'thoughts', thought_position, ARGV[i + 3])
  leases[#leases + 1], leases[#leases + 2] = now + lease_ms, id
  local num_tokens = output_bytes / 4
  redis.call('PUBLISH', events_channel(id), '{"tokens":' .. num_tokens .. '}')
  if job.output_due_ms and job.output_due_ms <= now then add_output_event(id, num_tokens, now) end
  return job.cancel_requested and 'CANCEL_REQUESTED' or 'OK'
end

for i = 2, #ARGV, 4 do
  local id, fence, identity, position, text_position, thought_position =
    string.match(ARGV[i], '^(%S+) (%S*) (%S*) (%d+) (%d+) (%d+)$')
  statuses[#statuses + 1] = guard_job(id, 'FENCED', save_output, id, fence, identity, tonumber(position),
    tonumber(text_position), tonumber(thought_position), i)
end
extend_leases(leases)
return statuses
