-- Merges one revocation into the record under KEYS[1]; the same merge as `merge` in the client's model.py.
--
-- ARGV[1] is JSON: claim, max_lifetime, leeway, skew (seconds), and where they apply exp, expires_in, issued_before,
-- cutoff_is_now, reason, revoked_by. A record that is handed on as it stands brings expires_at and revoked_at.
-- This server's clock decides what has expired and what lies too far ahead.
--
-- Returns {result} or {result, record, expires_at, was_foreign}, result being one of revoked, already_revoked,
-- expired, exp_too_far, issued_before_too_far; expires_at is empty for a key without an expiry. An accepted revocation is always written, also where it changes
-- nothing: a WAIT on this connection then speaks of it, whichever connection wrote it first.

local MOST_BYTES = 1048576 -- a longer value is not a record of this service and is never read

local asked = cjson.decode(ARGV[1])
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000

local function literal(number) -- the shortest form that reads back as the same number
  for digits = 15, 17 do
    local text = string.format('%.' .. digits .. 'g', number)
    if tonumber(text) == number then return text end
  end
end

local function finite(value)
  return type(value) == 'number' and value == value and value ~= math.huge and value ~= -math.huge
end

local function text_or_nil(value)
  if value == cjson.null then return nil end
  return value
end

local function is_text(value)
  return value == nil or type(value) == 'string'
end

local function stored_value() -- nil if it is no string or too long to be ours
  local length = redis.pcall('STRLEN', KEYS[1])
  if type(length) == 'table' and string.find(length.err, 'WRONGTYPE', 1, true) then return nil end
  if redis.call('STRLEN', KEYS[1]) > MOST_BYTES then return nil end -- raises what else went wrong
  return redis.call('GET', KEYS[1])
end

local function record_of(value) -- nil if it is not a record of this service
  if not value then return nil end
  local ok, members = pcall(cjson.decode, value)
  if not ok or type(members) ~= 'table' then return nil end
  members.reason = text_or_nil(members.reason)
  members.revoked_by = text_or_nil(members.revoked_by)
  local ours = finite(members.revoked_at)
    and (members.expires_at == nil or finite(members.expires_at))
    and (members.issued_before == nil or finite(members.issued_before))
    and is_text(members.reason) and is_text(members.revoked_by)
  if asked.claim == 'jti' then members.issued_before = nil end -- a token is revoked, or it is not
  return ours and members or nil
end

local function stored_record() -- the key says how long it lives; a value may only say it more exactly
  local left = redis.call('PTTL', KEYS[1])
  local ends = left < 0 and math.huge or now + left / 1000
  local record = record_of(stored_value()) or {revoked_at = math.huge, foreign = 1}
  local exact = record.expires_at and math.abs(record.expires_at - ends) < 0.05
  if not exact then record.expires_at = ends end
  return record
end

local function before(one, other) -- by bytes: `<` would follow the server's locale
  for i = 1, math.min(#one, #other) do
    local a, b = one:byte(i), other:byte(i)
    if a ~= b then return a < b end
  end
  return #one < #other
end

local function came_first(one, other) -- what is known goes before what is not
  if one.revoked_at ~= other.revoked_at then return one.revoked_at < other.revoked_at end
  for _, field in ipairs({'reason', 'revoked_by'}) do
    local a, b = one[field], other[field]
    if a ~= b then
      if a == nil or b == nil then return b == nil end
      return before(a, b)
    end
  end
  return true
end

local function later_cutoff(one, other) -- nil covers every token
  if one == nil or other == nil then return nil end
  return math.max(one, other)
end

local issued_before = asked.issued_before
if issued_before == nil and asked.cutoff_is_now then issued_before = now end
if issued_before and issued_before > now + asked.skew then return {'issued_before_too_far'} end

local expires_at = asked.expires_at
if not expires_at then
  local dies_at = asked.exp
  if asked.expires_in then dies_at = math.max(dies_at or 0, now + asked.expires_in) end
  if not dies_at then dies_at = math.max(now, issued_before or now) + asked.max_lifetime end
  if dies_at > now + asked.max_lifetime + asked.skew then return {'exp_too_far'} end
  expires_at = dies_at + asked.leeway
end
if expires_at <= now then return {'expired'} end

local merged = {
  expires_at = expires_at,
  revoked_at = asked.revoked_at or now,
  issued_before = issued_before,
  reason = asked.reason,
  revoked_by = asked.revoked_by,
}
local result, was_foreign = 'revoked', 0
if redis.call('EXISTS', KEYS[1]) == 1 then
  local stored = stored_record()
  was_foreign = stored.foreign or 0
  local covers_more = stored.issued_before ~= nil and (issued_before == nil or issued_before > stored.issued_before)
  if not covers_more then result = 'already_revoked' end
  local first = came_first(stored, merged) and stored or merged
  merged = {
    expires_at = math.max(stored.expires_at, merged.expires_at),
    revoked_at = first.revoked_at,
    issued_before = later_cutoff(stored.issued_before, merged.issued_before),
    reason = first.reason,
    revoked_by = first.revoked_by,
  }
end

local parts = {'"revoked_at":' .. literal(merged.revoked_at)}
if merged.expires_at < math.huge then parts[#parts + 1] = '"expires_at":' .. literal(merged.expires_at) end
if merged.issued_before then parts[#parts + 1] = '"issued_before":' .. literal(merged.issued_before) end
if merged.revoked_by then parts[#parts + 1] = '"revoked_by":' .. cjson.encode(merged.revoked_by) end
if merged.reason then parts[#parts + 1] = '"reason":' .. cjson.encode(merged.reason) end
local record = '{' .. table.concat(parts, ',') .. '}'

if merged.expires_at < math.huge then
  redis.call('SET', KEYS[1], record, 'PXAT', string.format('%.0f', math.ceil(merged.expires_at * 1000)))
else
  redis.call('SET', KEYS[1], record) -- a foreign writer set no expiry, and a life is never shortened
end
return {result, record, merged.expires_at < math.huge and literal(merged.expires_at) or '', was_foreign}
