-- How far series are saved in Postgres; what was written last more than keep_ms ago is forgotten, some at a time.
-- KEYS: saved (hash series -> sequence), its times (zset).  ARGV: keep_ms, then series, sequence…

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for i = 2, #ARGV, 2 do
  local known = redis.call('HGET', KEYS[1], ARGV[i])
  if not known or tonumber(known) < tonumber(ARGV[i + 1]) then redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
  redis.call('ZADD', KEYS[2], now, ARGV[i])
end
local old = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now - tonumber(ARGV[1]), 'LIMIT', 0, 256)
for _, series in ipairs(old) do
  redis.call('HDEL', KEYS[1], series)
  redis.call('ZREM', KEYS[2], series)
end
return 'ok'
