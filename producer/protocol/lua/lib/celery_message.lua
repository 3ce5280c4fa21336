-- The message that announces a job: Celery protocol 2 in kombu's envelope. It names the job and contains none of its
-- content. Built by hand because cjson writes an empty array and an empty object alike.
local MESSAGE = '{"body":%s,"content-encoding":"utf-8","content-type":"application/json",'
  .. '"headers":{"lang":"py","task":"batchmill.generate","id":"%s",%s,'
  .. '"shadow":null,"eta":null,"expires":null,"retries":0,'
  .. '"argsrepr":"()","kwargsrepr":"{...}","origin":"batchmill",'
  .. '"ignore_result":true},"properties":{"correlation_id":"%s","reply_to":"",'
  .. '"delivery_mode":2,"priority":0,"delivery_info":{"exchange":"","routing_key":%s},'
  .. '"delivery_tag":"%s.%d"}}'
local MESSAGE_BODY = '[[],{"job":"%s","v":1},%s]'
local PLACE = '"root_id":"%s","parent_id":null,"group":null,"timelimit":[null,null]'
local NO_FOLLOW_UPS = '{"callbacks":null,"errbacks":null,"chain":null,"chord":null}'

-- The place of a job in a Celery workflow and what follows it there, as the sender's own message had both.
local function celery_workflow(id, headers, embed)
  if headers and embed and pcall(cjson.decode, headers) and pcall(cjson.decode, embed) then
    return string.sub(headers, 2, -2), embed
  end
  return string.format(PLACE, id), NO_FOLLOW_UPS
end

-- `number`, how often the job was announced, makes the delivery tag unique: kombu keeps unacknowledged messages under
-- it. `job` has the fields `celery_headers` and `celery_embed` of the record.
local function celery_message(id, job, queue, number)
  local place, follow_ups = celery_workflow(id, job.celery_headers, job.celery_embed)
  local body = cjson.encode(string.format(MESSAGE_BODY, id, follow_ups))
  return string.format(MESSAGE, body, id, place, id, cjson.encode(queue), id, number)
end
