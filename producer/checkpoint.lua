-- ARGV: lease_ms, then for each job: id, fence, position (tokens), token bytes, text position
-- (bytes), text.
-- Answers a status for each job.
write_even_when_full()
local lease_ms, now = tonumber(ARGV[1]), now_ms()
local answers = {}
for i = 2, #ARGV, 6 do
  local id, fence, position = ARGV[i], tonumber(ARGV[i + 1]), tonumber(ARGV[i + 2])
  local job = load_lease(id)
  local answer = 'OK'
  if not holds(job, fence) then
    answer = 'FENCED'
  elseif not append_tokens(id, position * 4, ARGV[i + 3]) then
    answer = 'GAP'
  else
    append_text(id, tonumber(ARGV[i + 4]), ARGV[i + 5])
    redis.call('ZADD', LEASES, now + lease_ms, id)
    local num_tokens = redis.call('STRLEN', tokens_key(id)) / 4
    redis.call('PUBLISH', channel(id), '{"tokens":' .. num_tokens .. '}')
    if job.cancel_requested then answer = 'CANCEL_REQUESTED' end
  end
  answers[#answers + 1] = answer
end
return answers
