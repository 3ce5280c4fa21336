-- End a running job with its last tokens and its result or error, or let it wait for another attempt.
-- KEYS: none. ARGV: id, fence, identity of the engine that computed the output ('' = not known), state, result JSON
-- ('' = none), error JSON ('' = none), position (tokens), token bytes, tokens of the prompt, of the output, of the
-- prompt's cached part and of thoughts, with spaces ('' = count the stored output), retry_in_ms ('' = this is the end):
-- the job has failed, and is to be tried again after this time; starts_over ('1': not from the tokens so far);
-- finish_reason of the result ('' = none): the result may be sealed; digest of the corpus that learns from the output,
-- and most jobs of it, with a space ('' = none learns).
-- Reply: OK, ALREADY_DONE, RETRYING (it waits for another attempt), FENCED or GAP. It is not tried again, but ends, if
-- a user has cancelled it or its deadline would pass before.
-- @include corpora, finish, guard, history, keys, output, payloads, record, retry_later, server
allow_writes_when_full()
local id, fence, identity, state, error_text = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[6]
local retry_in_ms = tonumber(ARGV[10] or nil)

local function is_waiting_for_retry(job)
  return job and job.state == 'queued' and redis.call('HGET', job_key(id), 'retry_fence') == fence
end

return guard_job(id, 'FENCED', function()
  local job, payload = load_job(id, unpack(END_FIELDS)), split_reference(ARGV[5])
  local has_payload = payload and is_payload_noted(payload, now_ms())
  if job and TERMINAL[job.state] and job.completed_fence == fence then return 'ALREADY_DONE' end
  if not may_write_output(job, fence, identity) then return is_waiting_for_retry(job) and 'RETRYING' or 'FENCED' end
  if payload and not has_payload then return 'FENCED' end -- it came so late that the object was deleted
  local output_bytes, is_sealed = append_tokens(id, tonumber(ARGV[7]) * 4, ARGV[8])
  if not output_bytes then return 'GAP' end
  job.output_bytes, job.sealed_with = output_bytes, job.sealed_with or is_sealed
  local now = now_ms()
  local due_at = retry_in_ms and not job.cancel_requested and now + retry_in_ms
  if due_at and due_at < (job.deadline_at_ms or math.huge) then
    retry_later(id, job, error_text, due_at, ARGV[11] == '1', now)
    return 'RETRYING'
  end
  if payload then
    keep_payload(id, payload, job.payloads, now)
    job.payloads = (job.payloads and job.payloads .. ' ' or '') .. payload
  end
  local history = history_with_end(id, job, state, error_code(error_text), now)
  job.finish_reason = ARGV[12]
  local prompt, output, cached, thoughts = string.match(ARGV[9], '^(%d+) (%d+) (%d+) (%d+)$')
  local fields = { 'completed_fence', fence, 'history', history }
  local corpus, most = string.match(ARGV[13] or '', '^(%x+) (%d+)$')
  if corpus and state == 'completed' and output_bytes > 0 then
    note_in_corpus(id, job, corpus, tonumber(most), now)
    fields[#fields + 1] = 'corpus'
    fields[#fields + 1] = corpus
  end
  finish_job(id, job, state, ARGV[5], error_text, now,
    prompt and { tonumber(prompt), tonumber(output), tonumber(cached), tonumber(thoughts) }, fields)
  return 'OK'
end)
