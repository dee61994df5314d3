-- Count one attempt in a sliding window, if it has room.
--
-- KEYS[1] is the window: a sorted set of the admitted attempts by their time. ARGV holds the limit and the window's length.
-- The reply is {admitted (1 or 0), remaining, frees_in, now}. All times are in microseconds. frees_in is the time until
-- the oldest attempt that counts leaves the window.
--
-- This server's clock decides. If it steps back, the recorded attempts move with it and keep their distances, so the
-- limit neither loosens nor locks a client out for longer than one window.

local key, limit, window = KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2])
local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000000 + tonumber(clock[2])

local exact = '%.0f' -- tostring would round it

local function time_at(index)
  return tonumber(redis.call('ZRANGE', key, index, index, 'WITHSCORES')[2])
end

local ahead = math.max((time_at(-1) or 0) - now + 1, 0) -- every attempt has a time of its own

-- This write comes first: when memory is full, Redis refuses ZADD unless the script has written before.
redis.call('ZREMRANGEBYSCORE', key, '-inf', exact:format(now + ahead - window))
if ahead > 0 then
  local entries = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
  for i = 1, #entries, 2 do
    redis.call('ZADD', key, exact:format(tonumber(entries[i + 1]) - ahead), entries[i])
  end
end

local held = redis.call('ZCARD', key)
local admitted = held < limit
if admitted then
  redis.call('ZADD', key, exact:format(now), exact:format(now))
  held = held + 1
end
redis.call('PEXPIRE', key, exact:format(math.ceil(window / 1000) + 1))
local oldest = time_at(math.max(held - limit, 0))
return {admitted and 1 or 0, math.max(limit - held, 0), oldest + window - now, now}
