-- A worker says goodbye for one model; another start of it (another epoch) stays.
-- ARGV: worker, epoch

local id = ARGV[1]
local worker = decoded(WORKERS, id)
if worker and worker.epoch == ARGV[2] then
  redis.call('ZREM', ALIVE, id)
  put_worker(id, worker, now_ms())
end
return 'ok'
