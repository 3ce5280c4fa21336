-- The message that announces a job: Celery protocol 2 in kombu's envelope. It names the job and contains none of its
-- content. Built by hand because cjson writes an empty array and an empty object alike.
-- @include keys

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
local function celery_workflow(id)
  local f = redis.call('HMGET', job_key(id), 'celery_headers', 'celery_embed')
  if f[1] and f[2] and pcall(cjson.decode, f[1]) and pcall(cjson.decode, f[2]) then
    return string.sub(f[1], 2, -2), f[2]
  end
  return string.format(PLACE, id), NO_FOLLOW_UPS
end

-- `number` makes the delivery tag unique: kombu keeps unacknowledged messages under it.
local function celery_message(id, queue, number)
  local place, follow_ups = celery_workflow(id)
  local body = cjson.encode(string.format(MESSAGE_BODY, id, follow_ups))
  return string.format(MESSAGE, body, id, place, id, cjson.encode(queue), id, number)
end
