-- Count attempts in sliding windows.
--
-- KEYS[i] is the window of the i-th attempt; several attempts may have the same one. ARGV holds three arguments for each
-- attempt: its limit, the length of its window in microseconds, and its id. The reply has one entry for each attempt:
-- {now, frees_at, admitted (1 or 0), remaining}, times in microseconds. frees_at is the time when the oldest attempt that
-- counts leaves the window.
--
-- An id that is counted already is admitted again without being counted again. A denied attempt is not counted.
-- A window is a sorted set of ids by their time in microseconds. It holds at most `limit` of them, and expires with the
-- newest.
--
-- This server's clock decides. If it steps back, the recorded attempts move with it and keep their distances, so the limit
-- neither loosens nor locks a client out for longer than one window.

local TIES = 1000 -- microseconds that attempts of one batch may be ahead of the clock, which has not stepped back then

local clock = redis.call('TIME')
local started = tonumber(clock[1]) * 1000000 + tonumber(clock[2])

local function exact(number) -- tostring would round it
  return string.format('%.0f', number)
end

local function time_at(key, index)
  return tonumber(redis.call('ZRANGE', key, index, index, 'WITHSCORES')[2])
end

local function expire(key, window)
  redis.call('PEXPIRE', key, exact(math.ceil(window / 1000) + 1))
end

local function step_back(key, by)
  local entries = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
  for i = 1, #entries, 2 do
    redis.call('ZADD', key, exact(tonumber(entries[i + 1]) - by), entries[i])
  end
end

local function hit(key, limit, window, id)
  local now = started
  local newest = time_at(key, -1)
  if newest and newest > now + TIES then
    step_back(key, newest - now)
    expire(key, window)
    newest = now
  end
  if newest and newest >= now then now = newest + 1 end

  -- Also lets the script write when memory is full: Redis refuses ZADD then, unless the script has written before.
  redis.call('ZREMRANGEBYSCORE', key, '-inf', exact(now - window))
  local held = redis.call('ZCARD', key)
  local rank = redis.call('ZRANK', key, id)
  if not rank and held < limit then
    redis.call('ZADD', key, exact(now), id)
    expire(key, window)
    rank, held = held, held + 1
  end
  local frees_at = time_at(key, math.max(held - limit, 0)) + window
  return {now, frees_at, rank and 1 or 0, rank and math.max(limit - 1 - rank, 0) or 0}
end

local reply = {}
for i, key in ipairs(KEYS) do
  reply[i] = hit(key, tonumber(ARGV[3 * i - 2]), tonumber(ARGV[3 * i - 1]), ARGV[3 * i])
end
return reply
