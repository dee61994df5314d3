-- Which of KEYS are there, as of one moment: {seconds, microseconds, {index, value, PTTL}, ...}, absent keys left out.
-- Presence is what counts: a key that holds no string is reported too, with an empty value.
local now = redis.call('TIME')
local answer = {now[1], now[2]}
local here = redis.call('EXISTS', unpack(KEYS))
if here == 0 then
  return answer
end
local values = redis.call('MGET', unpack(KEYS))
for i = 1, #KEYS do
  if values[i] then
    answer[#answer + 1] = {i, values[i], redis.call('PTTL', KEYS[i])}
  end
end
if #answer - 2 < here then -- some hold no string
  for i = 1, #KEYS do
    if not values[i] and redis.call('EXISTS', KEYS[i]) == 1 then
      answer[#answer + 1] = {i, '', redis.call('PTTL', KEYS[i])}
    end
  end
end
return answer
