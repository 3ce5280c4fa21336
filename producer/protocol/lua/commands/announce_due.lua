-- ARGV: limit. Announces jobs whose delay is over, in turn; answers how many delays were.
write_even_when_full()
return announce_due(tonumber(ARGV[1]), now_ms())
