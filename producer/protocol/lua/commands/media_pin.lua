-- Note in the record of a running job which stored medium stands for one of its URLs, so that another attempt sees the
-- same bytes.
-- KEYS: none. ARGV: id, fence, place (from 0), names (with commas: any of them may be the stored one).
-- Reply: PINNED, FENCED, or GONE (the medium is not stored).
-- @include guard, keys, media, record, server, usage
allow_writes_when_full()
local id, place = ARGV[1], tonumber(ARGV[3])
return redis.status_reply(guard_job(id, 'FENCED', function()
  local job = load_job(id)
  if not holds_lease(job, ARGV[2]) then return 'FENCED' end
  local name = stored_media(ARGV[4])
  if not name then return 'GONE' end
  local names = {}
  for each in string.gmatch(job.media or '', '%S+') do names[#names + 1] = each end
  if not names[place + 1] then error('media is missing or wrong', 0) end
  if names[place + 1] ~= '-' then return 'PINNED' end -- the call was repeated after a lost reply
  names[place + 1] = name
  redis.call('HSET', job_key(id), 'media', table.concat(names, ' '))
  local num_bytes = hold_media(id, name)
  note_media_keys(id, name)
  if num_bytes > 0 then
    redis.call('HINCRBY', job_key(id), 'reserved_bytes', num_bytes)
    add_to_both(id, job, 'reserved', num_bytes)
  end
  return 'PINNED'
end))
