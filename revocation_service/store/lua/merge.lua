-- Merges revocations into their records, sets when they expire, and appends every change to the log, in one step.
--
-- KEYS: the log, then the key of each record. ARGV: JSON of what they share, then JSON of each revocation.
-- Shared: max_lifetime, leeway, skew (seconds), nonce (of the log entries), log_max (about how many entries the log keeps),
-- wall (the caller's clock), and restore, which is true where records are written back as they stand.
-- Each: claim, value, and where they apply exp, expires_in, issued_before, cutoff_is_now, reason, revoked_by; a restored
-- one expires_at and revoked_at. The merge is `merge` of revocation_client/revocation.py.
-- This server's clock decides what has expired and what lies too far ahead.
--
-- Returns for each {result}, or {result, record, expires_at, was_foreign, changed}. The result is one of revoked,
-- already_revoked, expired, exp_too_far, issued_before_too_far, clocks_differ; expires_at is empty for a key without an
-- expiry. Where the caller's clock and this one differ by more than skew, nothing is stored: a token that is still valid
-- there may count as expired here.
-- A request that is accepted always writes its record, also where nothing changes: a WAIT on this connection then speaks of
-- it, whichever connection wrote it first. A restore writes only what changes (rules 1 and 2 of the replication protocol).
local MOST_BYTES = 1048576 -- a longer value is foreign; it is never read
local UNDER_WAY = 1 -- seconds that a request may have taken to arrive
local TOLERANCE = 2 -- seconds that a restored end may be later and count as the same: mirrors round ends up (as in ask.lua)
local LOG, shared = KEYS[1], cjson.decode(ARGV[1])
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000

local function literal(number) -- the shortest form that reads back as the same number
  for digits = 15, 17 do
    local text = string.format('%.' .. digits .. 'g', number)
    if tonumber(text) == number then return text end
  end
end

local function finite(value) return type(value) == 'number' and value - value == 0 end -- neither infinite nor NaN
local function is_text(value) return value == nil or type(value) == 'string' end
local function text_or_nil(value) if value ~= cjson.null then return value end end

local function stored_value(key) -- nil if it is no string or too long to be a record of ours
  local length = redis.pcall('STRLEN', key)
  if type(length) == 'table' and length.err:find('WRONGTYPE', 1, true) then return nil end
  if redis.call('STRLEN', key) > MOST_BYTES then return nil end -- raises any other error, such as one of an ACL
  return redis.call('GET', key)
end

local function record_of(value, claim) -- nil if it is foreign
  local ok, members = pcall(cjson.decode, value or '')
  if not ok or type(members) ~= 'table' then return nil end
  members.reason, members.revoked_by = text_or_nil(members.reason), text_or_nil(members.revoked_by)
  local ours = finite(members.revoked_at)
    and (members.expires_at == nil or finite(members.expires_at))
    and (members.issued_before == nil or finite(members.issued_before))
    and is_text(members.reason) and is_text(members.revoked_by)
  if claim == 'jti' then members.issued_before = nil end -- a token is revoked, or it is not
  return ours and members or nil
end

local function stored_record(key, claim) -- the key says when it ends; its value may only say so more exactly
  local left = redis.call('PTTL', key) -- -2: no such key; -1: no expiry
  if left == -2 then return nil end
  local ends = left < 0 and math.huge or now + left / 1000
  local record = record_of(stored_value(key), claim) or {revoked_at = math.huge, foreign = true}
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
  return one and other and math.max(one, other)
end

local function requested(asked) -- the record that is asked for; nil and the result where there is none
  local apart = shared.wall and math.abs(shared.wall - now) or 0
  if apart > shared.skew + UNDER_WAY then return nil, 'clocks_differ' end
  local present = math.max(now, shared.wall or now) -- a token was issued by either clock
  local cutoff, ends = asked.issued_before or asked.cutoff_is_now and present or nil, asked.expires_at
  if cutoff and cutoff > present + shared.skew and not shared.restore then return nil, 'issued_before_too_far' end
  if not ends then
    local dies_at = asked.exp
    if asked.expires_in then dies_at = math.max(dies_at or 0, now + asked.expires_in) end
    if dies_at and dies_at > now + shared.max_lifetime + shared.skew then return nil, 'exp_too_far' end
    ends = (dies_at or math.max(now, cutoff or now) + shared.max_lifetime) + shared.leeway
  end
  if ends <= now then return nil, 'expired' end
  local revoked_at = asked.revoked_at or shared.restore and math.huge or now -- huge: whatever is stored came first
  return {expires_at = ends, revoked_at = revoked_at, issued_before = cutoff, reason = asked.reason,
    revoked_by = asked.revoked_by}
end

local function merged(one, other)
  local first = came_first(one, other) and one or other
  return {expires_at = math.max(one.expires_at, other.expires_at), revoked_at = first.revoked_at,
    issued_before = later_cutoff(one.issued_before, other.issued_before), reason = first.reason, revoked_by = first.revoked_by}
end

local function equal(one, other)
  for _, field in ipairs({'expires_at', 'revoked_at', 'issued_before', 'reason', 'revoked_by'}) do
    if one[field] ~= other[field] then return false end
  end
  return true
end

local function times(record)
  local parts = {'"revoked_at":' .. literal(record.revoked_at)}
  if record.expires_at < math.huge then parts[2] = '"expires_at":' .. literal(record.expires_at) end
  if record.issued_before then parts[#parts + 1] = '"issued_before":' .. literal(record.issued_before) end
  return table.concat(parts, ',')
end

local function append(asked, record) -- before the record is written: where Redis refuses this, nothing has changed
  local ends = record.expires_at == math.huge and '"expires_at":null,' or ''
  local named = '{"claim":' .. cjson.encode(asked.claim) .. ',"value":' .. cjson.encode(asked.value) .. ',' .. ends
  redis.call('XADD', LOG, 'MAXLEN', '~', shared.log_max, '*', 'n', shared.nonce, 'r', named .. times(record) .. '}')
end

local function put(key, asked)
  local record, refused = requested(asked)
  if not record then return {refused} end
  local stored, result = stored_record(key, asked.claim), 'revoked'
  if stored then
    local cutoff, ends = stored.issued_before, stored.expires_at
    if shared.restore and record.expires_at <= ends + TOLERANCE then record.expires_at = ends end
    if not cutoff or (record.issued_before and record.issued_before <= cutoff) then result = 'already_revoked' end
    record = merged(stored, record)
  end
  local changed = not stored or not equal(stored, record)
  if record.revoked_at == math.huge then record.revoked_at = now end
  local value = '{' .. times(record)
  if record.revoked_by then value = value .. ',"revoked_by":' .. cjson.encode(record.revoked_by) end
  if record.reason then value = value .. ',"reason":' .. cjson.encode(record.reason) end
  value = value .. '}'
  local ends = record.expires_at < math.huge and literal(record.expires_at) or ''
  local foreign = stored and stored.foreign and 1 or 0
  if changed then append(asked, record) end
  if not changed and shared.restore then
    return {result, value, ends, foreign, 0}
  elseif record.expires_at == math.huge then
    redis.call('SET', key, value) -- a foreign writer set no expiry, and a life is never shortened
  else
    redis.call('SET', key, value, 'PXAT', string.format('%.0f', math.ceil(record.expires_at * 1000)))
  end
  return {result, value, ends, foreign, changed and 1 or 0}
end

local results = {}
for i = 2, #KEYS do results[#results + 1] = put(KEYS[i], cjson.decode(ARGV[i])) end
return results
