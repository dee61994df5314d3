-- Counts attempts in the sliding window under KEYS[1]: at most ARGV[1] in any ARGV[2] microseconds.
--
-- ARGV[3], ... are the attempts' ids. One that is counted already is admitted again without being counted again; one
-- that is denied is not counted. The key is a sorted set of ids by their time in microseconds, so it never holds more
-- than ARGV[1] of them, and it expires with the newest.
--
-- This server's clock decides. Where it stepped back, the entries step back with it: they keep their distances, and no
-- time has passed since the newest. So a step back frees nobody, and shuts nobody out for longer than one window.
--
-- Returns {now, frees_at, admitted, remaining, admitted, remaining, ...}: times in microseconds, frees_at being when the
-- next place will be free, and admitted 1 or 0 for each id in turn.

local limit, window = tonumber(ARGV[1]), tonumber(ARGV[2])
local TIES = 1000 -- microseconds by which the newest entry may be ahead without the clock having stepped back

local function exact(number) -- tostring would round it
  return string.format('%.0f', number)
end

local function time_at(index)
  return tonumber(redis.call('ZRANGE', KEYS[1], index, index, 'WITHSCORES')[2])
end

local function expire()
  redis.call('PEXPIRE', KEYS[1], exact(math.ceil(window / 1000) + 1))
end

local function step_back(by)
  local entries = redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')
  for i = 1, #entries, 2 do
    redis.call('ZADD', KEYS[1], exact(tonumber(entries[i + 1]) - by), entries[i])
  end
  expire()
end

local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000000 + tonumber(clock[2])
local newest = time_at(-1)
if newest and newest > now + TIES then
  step_back(newest - now)
  newest = now
end
if newest and newest >= now then now = newest + 1 end

redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', exact(now - window))
local held = redis.call('ZCARD', KEYS[1])
local answer = {now, now}
local counted = false
for i = 3, #ARGV do
  local rank = redis.call('ZRANK', KEYS[1], ARGV[i])
  if not rank and held < limit then
    redis.call('ZADD', KEYS[1], exact(now), ARGV[i])
    rank, held, counted, now = held, held + 1, true, now + 1
  end
  answer[#answer + 1] = rank and 1 or 0
  answer[#answer + 1] = rank and math.max(limit - 1 - rank, 0) or 0
end
if counted then expire() end
if held > 0 then answer[2] = time_at(math.max(held - limit, 0)) + window end
return answer
