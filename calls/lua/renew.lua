-- A longer life for a lease. One that has expired, or that a Redis which came back empty doesn't know, is taken up
-- again where nobody has taken the call or the slot since.
-- ARGV: call, worker, epoch, fence, lease_ms, fence_kept_ms
-- Returns 'ok', 'lost', or 'unknown': the worker isn't known here (yet).

local call, id, epoch, fence = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local lease_ms, fence_kept_ms = tonumber(ARGV[5]), ARGV[6]
local now = now_ms()
local lease = decoded(LEASES, call)
local worker = decoded(WORKERS, id)

if worker and worker.epoch ~= epoch then
  if lease and lease.fence == fence then drop_lease(call, now) end
  return 'lost'
end
if lease then
  if lease.fence ~= fence then return 'lost' end
  redis.call('ZADD', EXPIRY, now + lease_ms, call)
  redis.call('PEXPIRE', FENCE, fence_kept_ms)
  return 'ok'
end
local last_fence = redis.call('GET', FENCE)
if last_fence and tonumber(last_fence) ~= fence then return 'lost' end
if not worker then return 'unknown' end

reap(now)
worker = decoded(WORKERS, id)
if not worker then return 'unknown' end
if worker.unclaimed > 0 then
  worker.unclaimed = worker.unclaimed - 1
elseif worker.leases >= worker.slots then
  return 'lost'
end
worker.leases = worker.leases + 1
put_worker(id, worker, now)
put_lease(call, {worker = id, epoch = epoch, fence = fence}, now + lease_ms)
redis.call('SET', FENCE, string.format('%.0f', fence), 'PX', fence_kept_ms)
return 'ok'
