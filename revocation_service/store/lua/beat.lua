-- The heartbeat (rule 3 of docs/architecture.md, "Replication"): tells a worker the epoch, and what is pending.
--
-- KEYS: the state, the log. ARGV: a random name for a new epoch and a first log entry; the sender's restored epoch or '';
-- its cursor ('id.nonce') or ''; how long a pending restore stays marked, and a new epoch itself (0: not at all), both in
-- milliseconds; '1' if something must be written, so that a WAIT on this connection has something to confirm.
-- Returns {epoch, {pending epoch, ...}, the log's last entry or '', 1 if the cursor's entry is in the log, else 0,
-- the error of the first write that Redis refused, else '', this server's clock in milliseconds since the epoch,
-- the log's first entry if the cursor's is not in it, else ''}.
-- Redis 6.2 puts the line of the script before an error.
local STATE, LOG = KEYS[1], KEYS[2]
local name, restored_epoch, cursor = ARGV[1], ARGV[2], ARGV[3]
local pending_ms, grace_ms, must_write = tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6] == '1'
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local refused = ''
local function write(...) -- a full or read-only Redis must still be readable
  local reply = redis.pcall(...)
  if type(reply) == 'table' and reply.err and refused == '' then refused = reply.err end
  return not (type(reply) == 'table' and reply.err)
end

local info = redis.pcall('INFO', 'replication') -- an ACL may forbid it
info = type(info) == 'string' and info or ''
if info:find('role:slave', 1, true) then return redis.error_reply('READONLY this Redis is a replica') end
local life = info:match('master_replid:(%x+)') or '?'

local state = {}
local flat = redis.pcall('HGETALL', STATE) -- another type of value counts as no state
for i = 1, #flat, 2 do state[flat[i]] = flat[i + 1] end

local function mark(epoch, milliseconds)
  local field = 'pending:' .. epoch
  state[field] = now + milliseconds
  write('HDEL', STATE, field) -- a full Redis refuses HSET, unless the script has written before
  write('HSET', STATE, field, now + milliseconds)
end

-- before all other writes, which let the rest of the script write to a full Redis
if must_write and not flat.err then write('HSET', STATE, 'beat', now) end

if not state.epoch or state.life ~= life then
  write('DEL', STATE)
  if not write('HSET', STATE, 'epoch', name, 'life', life) then name = 'unwritten ' .. life end -- one name for all
  state = {epoch = name}
  mark(name, grace_ms)
end
if restored_epoch ~= '' and restored_epoch ~= state.epoch then mark(restored_epoch, pending_ms) end

local pending = {}
for field, value in pairs(state) do
  local epoch, ends = field:match('^pending:(.*)'), tonumber(value)
  if epoch and ends and ends > now then
    pending[#pending + 1] = epoch
    if ends > now + pending_ms then write('HSET', STATE, field, now + pending_ms) end -- the clock stepped back
  elseif epoch then
    write('HDEL', STATE, field)
  end
end

local length = redis.pcall('XLEN', LOG)
local readable = type(length) == 'number' -- another type of value under this key must not stop the heartbeats
if not readable then refused = length.err end
if length == 0 then write('XADD', LOG, '*', 'n', name) end
local function cursor_of(entry) -- an entry of another application has no nonce
  local nonce = entry[2][1] == 'n' and entry[2][2]:match('^%w+$') or ''
  return entry[1] .. '.' .. nonce
end
local last = readable and redis.call('XREVRANGE', LOG, '+', '-', 'COUNT', 1)[1]
local id = cursor:match('^[^.]+')
local found = readable and id and redis.call('XRANGE', LOG, id, id)[1]
if refused:find('READONLY', 1, true) then return redis.error_reply('READONLY this Redis takes no writes') end
local there = found and cursor_of(found) == cursor and 1 or 0
local first = readable and there == 0 and redis.call('XRANGE', LOG, '-', '+', 'COUNT', 1)[1]
return {state.epoch, pending, last and cursor_of(last) or '', there, refused, now, first and cursor_of(first) or ''}
