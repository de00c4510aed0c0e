-- Something for one process. A process that doesn't fetch what is in its list gets no more of it, and it expires.
-- KEYS: list.  ARGV: message, most_waiting, expiry_ms

if redis.call('LLEN', KEYS[1]) >= tonumber(ARGV[2]) then
  return 'full'
end
redis.call('RPUSH', KEYS[1], ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 'ok'
