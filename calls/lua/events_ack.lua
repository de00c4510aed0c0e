-- Entries are dealt with; what every persister has dealt with and is older than keep_ms leaves the stream.
-- KEYS: stream.  ARGV: group, keep_ms, ids…

local stream, group = KEYS[1], ARGV[1]
for i = 3, #ARGV do redis.call('XACK', stream, group, ARGV[i]) end

local pending = redis.pcall('XPENDING', stream, group)
if pending.err then return 'gone' end  -- Redis came back empty meanwhile
local first_kept = pending[1] > 0 and pending[2] or nil
if not first_kept then
  for _, info in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
    local fields = {}
    for i = 1, #info, 2 do fields[info[i]] = info[i + 1] end
    if fields.name == group then first_kept = fields['last-delivered-id'] end
  end
end
local time = redis.call('TIME')
local oldest_ms = time[1] * 1000 + math.floor(time[2] / 1000) - tonumber(ARGV[2])
if oldest_ms <= tonumber(string.match(first_kept, '^(%d+)-')) then
  first_kept = string.format('%.0f-0', oldest_ms)
end
redis.call('XTRIM', stream, 'MINID', first_kept)
return 'ok'
