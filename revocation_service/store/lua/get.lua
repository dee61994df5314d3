-- Returns which of KEYS exist, as of one moment: {seconds, microseconds, {index, value, PTTL}, ...}.
--
-- A key revokes by existing, whatever it holds. One that holds no string, or a value too long to be a record of ours, is
-- returned with an empty value: 50 MB that a foreign application wrote are never copied or sent.
local MOST_BYTES = 1048576
local now = redis.call('TIME')
local answer = {now[1], now[2]}
local here = redis.call('EXISTS', unpack(KEYS))
if here == 0 then
  return answer
end
for i = 1, #KEYS do
  local left = redis.call('PTTL', KEYS[i])
  if left ~= -2 then -- -2: no such key
    local length = redis.pcall('STRLEN', KEYS[i])
    local failed = type(length) == 'table'
    if failed and not string.find(length.err, 'WRONGTYPE', 1, true) then
      return length -- an ACL that forbids STRLEN must not turn every record into an empty one
    end
    local readable = not failed and length <= MOST_BYTES
    answer[#answer + 1] = {i, readable and redis.call('GET', KEYS[i]) or '', left}
    if #answer - 2 == here then break end
  end
end
return answer
