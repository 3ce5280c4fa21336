-- The message that announces a job: Celery protocol 2 in kombu's envelope. It names the job and contains none of its
-- content. Built by hand because cjson writes an empty array and an empty object alike.

local MESSAGE = '{"body":%s,"content-encoding":"utf-8","content-type":"application/json",'
  .. '"headers":{"lang":"py","task":"batchmill.generate","id":"%s","root_id":"%s",'
  .. '"parent_id":null,"group":null,"shadow":null,"eta":null,"expires":null,"retries":0,'
  .. '"timelimit":[null,null],"argsrepr":"()","kwargsrepr":"{...}","origin":"batchmill",'
  .. '"ignore_result":true},"properties":{"correlation_id":"%s","reply_to":"",'
  .. '"delivery_mode":2,"priority":0,"delivery_info":{"exchange":"","routing_key":%s},'
  .. '"delivery_tag":"%s.%d"}}'
local MESSAGE_BODY = '[[],{"job":"%s","v":1},'
  .. '{"callbacks":null,"errbacks":null,"chain":null,"chord":null}]'

-- `number` makes the delivery tag unique: kombu keeps unacknowledged messages under it.
local function celery_message(id, queue, number)
  local body = cjson.encode(string.format(MESSAGE_BODY, id))
  return string.format(MESSAGE, body, id, id, id, cjson.encode(queue), id, number)
end
