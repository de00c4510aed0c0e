-- A call's place among those that wait for a slot: first come, first served.
-- KEYS: order (by arrival), waiting (until when, unless it asks again), arrivals
-- ARGV: call, kept_ms, most.  With most 0 it doesn't begin to wait.
-- Returns how many wait before it, or -1: as many wait as may.

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for _, gone in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, 100)) do
  redis.call('ZREM', KEYS[1], gone)
  redis.call('ZREM', KEYS[2], gone)
end
local place = redis.call('ZRANK', KEYS[1], ARGV[1])
if not place then
  place = redis.call('ZCARD', KEYS[1])
  if ARGV[3] == '0' then return place end
  if place >= tonumber(ARGV[3]) then return -1 end
  redis.call('ZADD', KEYS[1], redis.call('INCR', KEYS[3]), ARGV[1])
end
redis.call('ZADD', KEYS[2], now + tonumber(ARGV[2]), ARGV[1])
return place
