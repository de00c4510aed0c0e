-- A slot for a call: the least loaded worker; at equal load the one with fewer calls, then by name.
-- ARGV: call, lease_ms, fence_above, fence_kept_ms
-- Returns {'ok', worker, epoch, url, fence} or {'busy'}, {'none'}, {'again'}: more has expired than one run may reap.

local call, lease_ms, fence_above, fence_kept_ms = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local now = now_ms()
local more = reap(now)
local old_until = redis.call('ZSCORE', EXPIRY, call)
local old = drop_lease(call, now)  -- a moved call; its old slot is as good as any other

local id, worker
for _ = 1, REAPED_AT_ONCE do
  local mark = redis.call('ZRANGE', FREE, 0, 0)[1]
  if not mark then break end
  local candidate_id = string.sub(mark, 8)
  local candidate = decoded(WORKERS, candidate_id)
  if candidate and is_alive(candidate_id, now) then
    id, worker = candidate_id, candidate
    break
  end
  redis.call('ZREM', FREE, mark)
end

if id then
  local fence = math.max(tonumber(redis.call('GET', FENCE) or 0), fence_above) + 1
  redis.call('SET', FENCE, string.format('%.0f', fence), 'PX', fence_kept_ms)
  worker.leases = worker.leases + 1
  put_worker(id, worker, now)
  put_lease(call, {worker = id, epoch = worker.epoch, fence = fence}, now + lease_ms)
  return {'ok', id, worker.epoch, worker.url, fence}
end

if old then  -- refused: nothing has changed
  put_lease(call, old, old_until)
  local holder = decoded(WORKERS, old.worker)
  if holder and holder.epoch == old.epoch then
    holder.leases = holder.leases + 1
    put_worker(old.worker, holder, now)
  end
end
if more then return {'again'} end
for _, live in ipairs(redis.call('ZRANGEBYSCORE', ALIVE, '(' .. now, '+inf')) do
  local offered = decoded(WORKERS, live)
  if offered and not offered.draining and offered.slots > 0 then return {'busy'} end
end
return {'none'}
