-- Is the writer's last entry still there, and how far are its series saved?
-- KEYS: stream, saved.  ARGV: id and key of the last entry ('' for none), series…  Returns {1 or 0, sequences or false…}

local last_id, last_key = ARGV[1], ARGV[2]
local answer = {1}
if last_id ~= '' then
  local found = redis.call('XRANGE', KEYS[1], last_id, last_id)[1]
  if not found or found[2][2] ~= last_key then answer[1] = 0 end
end
for i = 3, #ARGV do answer[i - 1] = redis.call('HGET', KEYS[2], ARGV[i]) end
return answer
