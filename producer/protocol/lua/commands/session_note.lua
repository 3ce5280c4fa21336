-- Note that a session of a program that is not a worker is alive, also if Redis is full.
-- KEYS: none. ARGV: session, milliseconds after which it is silent.
-- Reply: the number of its connections that Redis sees.
-- @include server, sessions
allow_writes_when_full()
return note_session(ARGV[1], now_ms() + ARGV[2])
