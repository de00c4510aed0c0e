-- Takes persisters out of the group who hold nothing: this one, and those that are silent for too long.
-- KEYS: stream.  ARGV: group, consumer ('' for none), idle_ms

local consumers = redis.pcall('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])
if consumers.err then return 'gone' end
for _, info in ipairs(consumers) do
  local fields = {}
  for i = 1, #info, 2 do fields[info[i]] = info[i + 1] end
  if fields.pending == 0 and (fields.name == ARGV[2] or fields.idle > tonumber(ARGV[3])) then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], fields.name)
  end
end
return 'ok'
