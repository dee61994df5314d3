-- Which of KEYS are there, as of one moment: {seconds, microseconds, {index, value, PTTL}, ...}, absent keys left out.
-- Presence is what counts: a key that holds no string is reported too, with an empty value.
local now = redis.call('TIME')
local answer = {now[1], now[2]}
local values = redis.call('MGET', unpack(KEYS))
if redis.call('EXISTS', unpack(KEYS)) > 0 then
  for i = 1, #KEYS do
    if values[i] or redis.call('EXISTS', KEYS[i]) == 1 then
      answer[#answer + 1] = {i, values[i] or '', redis.call('PTTL', KEYS[i])}
    end
  end
end
return answer
