-- A browser's offer for one WebRTC process. A process that doesn't fetch its offers gets no more of them, and they expire.
-- KEYS: list.  ARGV: request, most_waiting, expiry_ms

if redis.call('LLEN', KEYS[1]) >= tonumber(ARGV[2]) then
  return 'full'
end
redis.call('RPUSH', KEYS[1], ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 'ok'
