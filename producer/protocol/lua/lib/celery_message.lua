-- The message that announces a job: Celery protocol 2 in kombu's envelope. It names the job and contains none of its
-- content. Built by hand because cjson writes an empty array and an empty object alike, and from pieces because
-- `string.format` copies one character after another.

-- The place of a job in a Celery workflow and what follows it there, as the sender's own message had both; nil if they
-- are not JSON.
-- @rare
local function celery_workflow(headers, embed)
  if pcall(cjson.decode, headers) and pcall(cjson.decode, embed) then return string.sub(headers, 2, -2), embed end
end

-- `number`, how often the job was announced, makes the delivery tag unique: kombu keeps unacknowledged messages under
-- it. `job` has the fields `celery_headers` and `celery_embed` of the record.
local function celery_message(id, job, queue, number)
  local place, follow_ups
  if job.celery_headers and job.celery_embed then
    place, follow_ups = celery_workflow(job.celery_headers, job.celery_embed)
  end
  place = place or '"root_id":"' .. id .. '","parent_id":null,"group":null,"timelimit":[null,null]'
  follow_ups = follow_ups or '{"callbacks":null,"errbacks":null,"chain":null,"chord":null}'
  local body = cjson.encode('[[],{"job":"' .. id .. '","v":1},' .. follow_ups .. ']')
  return '{"body":' .. body .. ',"content-encoding":"utf-8","content-type":"application/json",'
    .. '"headers":{"lang":"py","task":"batchmill.generate","id":"' .. id .. '",' .. place
    .. ',"shadow":null,"eta":null,"expires":null,"retries":0,"argsrepr":"()","kwargsrepr":"{...}","origin":"batchmill",'
    .. '"ignore_result":true},"properties":{"correlation_id":"' .. id .. '","reply_to":"","delivery_mode":2,'
    .. '"priority":0,"delivery_info":{"exchange":"","routing_key":' .. cjson.encode(queue)
    .. '},"delivery_tag":"' .. id .. '.' .. string.format('%d', number) .. '"}}'
end
