-- Returns the positions in KEYS of the records that are absent, or end more than 2 s earlier than told.
--
-- ARGV: for each key the end that the caller knows, in milliseconds since the epoch; '' for a record without an end,
-- which is missing only if the key is absent. Cutoffs are not compared: ask about the records of tokens alone.
local TOLERANCE = 2000
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local missing = {}
for i = 1, #KEYS do
  local left = redis.call('PTTL', KEYS[i]) -- -2: no such key; -1: no expiry
  local ends = tonumber(ARGV[i])
  if left == -2 or (ends and left >= 0 and now + left < ends - TOLERANCE) then missing[#missing + 1] = i end
end
return missing
