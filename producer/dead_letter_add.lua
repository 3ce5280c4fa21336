-- ARGV: id, kind, reason, payload, source. The same id again replaces the letter.
add_dead_letter(ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], now_ms())
return ARGV[1]
