-- Adds events to a partition, if what the writer added last is still there and the stream has room.
-- KEYS: stream.  ARGV: id and key of the writer's last entry ('' for none), longest length, then for each event its
-- key ("fence sequence source call"), floor, JSON.  Returns {'ok', ids…}, {'lost'} or {'full'}; the latter add nothing.

local stream, last_id, last_key, longest = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3])
if last_id ~= '' then
  local found = redis.call('XRANGE', stream, last_id, last_id)[1]
  if not found or found[2][2] ~= last_key then return {'lost'} end
end
if redis.call('XLEN', stream) + (#ARGV - 3) / 3 > longest then return {'full'} end
local answer = {'ok'}
for i = 4, #ARGV, 3 do
  answer[#answer + 1] = redis.call('XADD', stream, '*', 'key', ARGV[i], 'floor', ARGV[i + 1], 'event', ARGV[i + 2])
end
return answer
