-- Ends a lease, if it is still this one. The fence is counted up, so that a renewal that comes late finds it gone.
-- ARGV: call, fence, fence_kept_ms

local call, fence, fence_kept_ms = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local lease = decoded(LEASES, call)
if lease and lease.fence == fence then drop_lease(call, now_ms()) end
local last_fence = tonumber(redis.call('GET', FENCE) or fence)
if last_fence == fence then
  redis.call('SET', FENCE, string.format('%.0f', fence + 1), 'PX', fence_kept_ms)
end
return 'ok'
