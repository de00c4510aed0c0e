-- One more request of someone in this window.
-- KEYS: counter.  ARGV: most, window_ms.  Returns 0 when it is allowed, else the ms until the window ends.

local count = redis.call('INCR', KEYS[1])
if count == 1 then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
if count <= tonumber(ARGV[1]) then
  return 0
end
return math.max(1, redis.call('PTTL', KEYS[1]))
