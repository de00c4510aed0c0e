-- What all scripts on one model's leases share; put before each of them.
--
--   KEYS[1] workers  hash  worker -> JSON {epoch, url, slots, draining, full, leases, unclaimed, claim_until, mark}
--   KEYS[2] alive    zset  worker by the time (ms) at which its last heartbeat is too old
--   KEYS[3] free     zset  "<taken>:<worker>" by taken / slots: live, not draining or full, with a free slot
--   KEYS[4] leases   hash  call -> JSON {worker, epoch, fence}
--   KEYS[5] expiry   zset  call by the time (ms) at which its lease ends
--   KEYS[6] fence    the last fence given out for the call (where there is one)
--
-- Time is Redis's own, so that no clock of another machine decides what has expired.

local WORKERS, ALIVE, FREE, LEASES, EXPIRY, FENCE = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local REAPED_AT_ONCE = 64

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function decoded(key, field)
  local json = redis.call('HGET', key, field)
  return json and cjson.decode(json) or nil
end

local function is_alive(id, now)
  local until_ms = redis.call('ZSCORE', ALIVE, id)
  return until_ms and tonumber(until_ms) > now
end

-- Writes a worker back, at its place among the free ones. A dead worker is kept as long as calls hold leases on it,
-- so that it is counted right if it comes back.
local function put_worker(id, worker, now)
  if worker.mark ~= '' then
    redis.call('ZREM', FREE, worker.mark)
    worker.mark = ''
  end
  local alive = is_alive(id, now)
  local taken = worker.leases + worker.unclaimed
  if alive and not worker.draining and not worker.full and taken < worker.slots then
    worker.mark = string.format('%06d:%s', taken, id)
    redis.call('ZADD', FREE, taken / worker.slots, worker.mark)
  end
  if alive or worker.leases > 0 then
    redis.call('HSET', WORKERS, id, cjson.encode(worker))
  else
    redis.call('HDEL', WORKERS, id)
  end
end

local function put_lease(call, lease, until_ms)
  redis.call('HSET', LEASES, call, cjson.encode(lease))
  redis.call('ZADD', EXPIRY, until_ms, call)
end

-- Ends the call's lease, if it has one. The slot of a worker that has restarted since was free already.
local function drop_lease(call, now)
  local lease = decoded(LEASES, call)
  redis.call('ZREM', EXPIRY, call)
  if not lease then return nil end
  redis.call('HDEL', LEASES, call)
  local worker = decoded(WORKERS, lease.worker)
  if worker and worker.epoch == lease.epoch then
    worker.leases = worker.leases - 1
    put_worker(lease.worker, worker, now)
  end
  return lease
end

-- Ends expired leases and forgets silent workers, a bounded number; true if there may be more of them.
local function reap(now)
  local calls = redis.call('ZRANGEBYSCORE', EXPIRY, '-inf', now, 'LIMIT', 0, REAPED_AT_ONCE)
  for _, call in ipairs(calls) do drop_lease(call, now) end
  local ids = redis.call('ZRANGEBYSCORE', ALIVE, '-inf', now, 'LIMIT', 0, REAPED_AT_ONCE)
  for _, id in ipairs(ids) do
    redis.call('ZREM', ALIVE, id)
    local worker = decoded(WORKERS, id)
    if worker then put_worker(id, worker, now) end
  end
  return #calls == REAPED_AT_ONCE or #ids == REAPED_AT_ONCE
end
