-- Tells that a gateway is alive. KEYS: the set of gateways. ARGV: its name, and after how many
-- microseconds without a word one counts as gone. Returns how many are alive.

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local gone_after = tonumber(ARGV[2])

redis.call('ZADD', KEYS[1], string.format('%.0f', now), ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('(%.0f', now - gone_after))
-- From before the clock was set back. Those who live tell anew.
redis.call('ZREMRANGEBYSCORE', KEYS[1], string.format('(%.0f', now + gone_after), '+inf')
redis.call('PEXPIRE', KEYS[1], string.format('%.0f', gone_after / 1000))
return redis.call('ZCARD', KEYS[1])
