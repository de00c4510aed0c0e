-- A persister's next entries of one partition: those that a dead persister left, then new ones. Makes the group where
-- it is missing (a new Redis, or one that came back empty).
-- KEYS: stream.  ARGV: group, consumer, count, claim_idle_ms ('' not to claim).
-- Returns {id, key, floor, event} for each; fields that are missing are ''.

local stream, group, consumer, count, claim_idle_ms = KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4]
redis.pcall('XGROUP', 'CREATE', stream, group, '0', 'MKSTREAM')

local answer = {}
local function take(entries)
  for _, entry in ipairs(entries) do
    if entry then
      local fields = {key = '', floor = '', event = ''}
      for i = 1, #entry[2], 2 do fields[entry[2][i]] = entry[2][i + 1] end
      answer[#answer + 1] = {entry[1], fields.key, fields.floor, fields.event}
    end
  end
end

if claim_idle_ms ~= '' then
  take(redis.call('XAUTOCLAIM', stream, group, consumer, claim_idle_ms, '0', 'COUNT', count)[2])
end
local found = redis.call('XREADGROUP', 'GROUP', group, consumer, 'COUNT', count, 'STREAMS', stream, '>')
if found then take(found[1][2]) end
return answer
