-- Sessions: runs of workers and deliverers, each with a connection that ends with its process.
-- @include keys

-- Only a caller that has been connected for so long may judge others: after a restart or a failover of Redis, the
-- sessions of live workers need some time to connect again.
local OBSERVER_MS = 5000

-- @rare
local function is_connected(session)
  return redis.call('PUBSUB', 'NUMSUB', session_channel(session))[2] > 0
end

-- Note that a session is alive. Return the number of its connections.
-- A session that never had a connection (a proxy may not allow it) is not registered: that it has none shows nothing.
local function note_session(session, silent_at_ms)
  local num_connections = redis.call('PUBSUB', 'NUMSUB', session_channel(session))[2]
  if num_connections > 0 then
    redis.call('ZADD', SESSIONS, silent_at_ms, session)
  else
    redis.call('ZADD', SESSIONS, 'XX', silent_at_ms, session)
  end
  return num_connections
end

-- Whether another session than the caller's has taken something and has no connection. '' is no session.
local function is_taker_gone(taker, caller) return taker ~= '' and taker ~= caller and not is_connected(taker) end
