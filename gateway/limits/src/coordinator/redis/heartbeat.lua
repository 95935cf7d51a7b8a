-- Tells that a gateway is alive. KEYS: the set of gateways. ARGV: its name, and after how many
-- microseconds without a word one counts as gone; what of quotas it knows and has told, it has told to these
-- processes: their ids, '' if not all of it yet, or '.' for this one.
-- Returns how many are alive, and the ids of the processes that all of them have told; '' if not all have.

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local gateways, name, gone_after, told = KEYS[1], ARGV[1], tonumber(ARGV[2]), ARGV[3]
if told == '.' then
  told = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
end

-- A gateway has one entry for itself, and one more that names those it has told.
redis.call('ZADD', gateways, string.format('%.0f', now), name)
if told ~= '' then
  redis.call('ZADD', gateways, string.format('%.0f', now), name .. ' ' .. told)
end
redis.call('ZREMRANGEBYSCORE', gateways, '-inf', string.format('(%.0f', now - gone_after))
-- From before the clock was set back. Those who live tell anew.
redis.call('ZREMRANGEBYSCORE', gateways, string.format('(%.0f', now + gone_after), '+inf')
redis.call('PEXPIRE', gateways, string.format('%.0f', gone_after / 1000))

local live, who_told = {}, {}
for _, entry in ipairs(redis.call('ZRANGE', gateways, 0, -1)) do
  local of, ids = string.match(entry, '^(%S+) (.*)$')
  if not of then
    live[#live + 1] = entry
  elseif ids == told then
    who_told[of] = true
  end
end
for _, gateway in ipairs(live) do
  if not who_told[gateway] then
    return { #live, '' }
  end
end
return { #live, told }
