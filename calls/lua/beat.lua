-- A worker's sign of life for one model.
-- ARGV: worker, epoch, url, slots, used, draining ('1' or '0'), expiry_ms, full ('1': no time for more calls)
--
-- Leases say how many slots are taken. What the worker itself counts matters only when Redis doesn't know the worker
-- (it came back empty): its calls then are `unclaimed` until their bridges renew, for two expiries at most.

local id, epoch, url = ARGV[1], ARGV[2], ARGV[3]
local slots, used, expiry_ms = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[7])
local now = now_ms()
reap(now)
local worker = decoded(WORKERS, id)
if not worker or worker.epoch ~= epoch then
  worker = {epoch = epoch, leases = 0, unclaimed = used, claim_until = now + 2 * expiry_ms,
            mark = worker and worker.mark or ''}
else
  worker.unclaimed = now < worker.claim_until and math.min(worker.unclaimed, used) or 0
end
worker.url, worker.slots, worker.draining, worker.full = url, slots, ARGV[6] == '1', ARGV[8] == '1'
redis.call('ZADD', ALIVE, now + expiry_ms, id)
put_worker(id, worker, now)
return 'ok'
