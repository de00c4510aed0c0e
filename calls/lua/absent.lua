-- Takes one out of those that live; with an epoch only if it is that start of it.
-- KEYS: as in present.lua.  ARGV: id, epoch or ''.  Returns what was known of it, or nil.

local json = redis.call('HGET', KEYS[1], ARGV[1])
if not json or (ARGV[2] ~= '' and cjson.decode(json).epoch ~= ARGV[2]) then return nil end
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
return json
