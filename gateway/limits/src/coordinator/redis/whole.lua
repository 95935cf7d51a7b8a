-- Whether an account of a quota may have less than was used: Redis has known the tenant for shorter than the quota's
-- period lasts, and nobody has told what is known elsewhere.
-- KEYS: the account; what is known of the tenant's accounts: `since`, when they were first looked for, in microseconds.
-- ARGV: when the period began, and for how many microseconds after the last look that is kept.
-- Returns 1 if it may.

local ELSEWHERE = '@elsewhere'

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]

local since = tonumber(redis.call('HMGET', KEYS[2], 'since')[1] or '')
if not since then
  since = now
  redis.call('HSET', KEYS[2], 'since', string.format('%.0f', now))
end
redis.call('PEXPIRE', KEYS[2], string.format('%.0f', math.floor(ARGV[2] / 1000)))
if since <= tonumber(ARGV[1]) or redis.call('HMGET', KEYS[1], ELSEWHERE)[1] then
  return 0
end
return 1
