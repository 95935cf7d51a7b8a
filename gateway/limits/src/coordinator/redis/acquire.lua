-- One exchange: several accounts of one tenant, each for itself. What it does with an account is what
-- `ledger.rs` does, number for number; the comments there say why. Numbers are integers below 2^53, which
-- doubles hold exactly.
--
-- LEASE_TIME, SLOT_LEASE_TIME, KEPT and SETTLED_AFTER are set before this text is loaded, in microseconds.
--
-- KEYS: for each account its hash:
--   run     id of the Redis process that wrote it last
--   terms   kind, revision and the three numbers of the terms
--   state   level of a bucket, or what a quota has debited; when it was brought up to date; when it opens
--   @name   the lease of a reporter: spent, out, ends, ended, and the session and number of its last exchange
-- ARGV: reporter, its session, number of the exchange, revision, gateways that are live; then for each
--   account: kind, three numbers of its terms, spent, held, known, want, least.
-- Returns the time; then for each account: outcome, its tokens or wait, ends_in, left.

local GRANTED, NONE_UNTIL, RECOVERING, OTHER_PERIOD, OVERTAKEN = 0, 1, 2, 3, 4

local DAY = 24 * 60 * 60 * 1000000

local reporter = '@' .. ARGV[1]
local session = ARGV[2]
local number = tonumber(ARGV[3])
local revision = tonumber(ARGV[4])
local live = tonumber(ARGV[5])

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]

-- The process began in this second or before. It cannot have begun after now, whatever its clock did.
local server = redis.call('INFO', 'server')
local run = string.match(server, 'run_id:(%x+)')
local uptime = tonumber(string.match(server, 'uptime_in_seconds:(%-?%d+)'))
local began = math.min((time[1] - uptime + 1) * 1000000, now)

-- Rounded down, and exact, which a division of doubles is not.
local function quotient(a, b)
  local rest = math.fmod(a, b)
  if rest < 0 then
    rest = rest + b
  end
  return (a - rest) / b
end

local function quotient_up(a, b)
  return quotient(a + b - 1, b)
end

local function integer(n)
  return string.format('%.0f', n)
end

local function integers(...)
  local texts = {}
  for i, n in ipairs({ ... }) do
    texts[i] = integer(n)
  end
  return table.concat(texts, ' ')
end

local function words(text)
  local list = {}
  for word in string.gmatch(text, '%S+') do
    list[#list + 1] = word
  end
  return list
end

local function read_lease(text)
  local w = words(text)
  return {
    spent = tonumber(w[1]),
    out = tonumber(w[2]),
    ends = tonumber(w[3]),
    ended = w[4] == '1',
    session = w[5],
    number = w[6],
  }
end

local function write_lease(lease)
  return integers(lease.spent, lease.out, lease.ends, lease.ended and 1 or 0)
    .. ' ' .. lease.session .. ' ' .. lease.number
end

-- This reporter's lease, after this exchange.
local function own_lease(spent, out, ends)
  return { spent = spent, out = out, ends = ends, ended = false, session = session, number = ARGV[3] }
end

-- All fields; of a quota's leases, which stay as long as its period, only that of this reporter.
local function read_fields(request)
  local fields = {}
  if request.kind == 'quota' then
    local names = { 'run', 'terms', 'state', reporter }
    for i, value in ipairs(redis.call('HMGET', request.key, unpack(names))) do
      fields[names[i]] = value or nil
    end
  else
    local list = redis.call('HGETALL', request.key)
    for i = 1, #list, 2 do
      fields[list[i]] = list[i + 1]
    end
  end
  return fields
end

local function open(request, lost)
  local opens = (lost and now or began) + request.lease_time
  return {
    fields = {},
    revision = revision,
    terms = request.terms,
    value = 0,
    updated = opens,
    opens = opens,
    leases = {},
  }
end

-- The account as it was left; or a new one, if it is not there or of another kind.
local function load(request)
  local fields = read_fields(request)
  if not fields.terms then
    return open(request, request.known)
  end
  local terms, state = words(fields.terms), words(fields.state)
  if terms[1] ~= request.kind then
    redis.call('DEL', request.key)
    return open(request, true)
  end
  local account = {
    fields = fields,
    revision = tonumber(terms[2]),
    terms = { tonumber(terms[3]), tonumber(terms[4]), tonumber(terms[5]) },
    value = tonumber(state[1]),
    updated = tonumber(state[2]),
    opens = tonumber(state[3]),
    leases = {},
  }
  for name, text in pairs(fields) do
    if string.sub(name, 1, 1) == '@' then
      account.leases[name] = read_lease(text)
    end
  end
  -- Another process: what was given last may not have reached it. All that is out there ends before it opens.
  if fields.run ~= run then
    account.opens = now + request.lease_time
    if request.kind == 'bucket' then
      account.value = math.min(account.value, 0)
      account.updated = account.opens
      account.leases = {}
    end
  end
  return account
end

-- Writes what has changed. Returns whether the terms have.
local function save(request, account)
  local fields = account.fields
  local changed, gone = {}, {}
  local function put(name, text)
    if fields[name] ~= text then
      changed[#changed + 1] = name
      changed[#changed + 1] = text
    end
  end
  put('run', run)
  local terms = request.kind .. ' ' .. integers(account.revision, unpack(account.terms))
  put('terms', terms)
  put('state', integers(account.value, account.updated, account.opens))
  for name, lease in pairs(account.leases) do
    put(name, write_lease(lease))
  end
  for name in pairs(fields) do
    if string.sub(name, 1, 1) == '@' and not account.leases[name] then
      gone[#gone + 1] = name
    end
  end
  if #changed > 0 then
    redis.call('HSET', request.key, unpack(changed))
  end
  if #gone > 0 then
    redis.call('HDEL', request.key, unpack(gone))
  end
  return fields.terms ~= terms
end

-- Keeps the account for this many microseconds from now.
local function keep(request, account, micros)
  local ahead = math.max(account.updated - now, account.opens - now, 0)
  redis.call('PEXPIRE', request.key, integer(quotient_up(micros + ahead, 1000)))
end

-- What a bucket's level can be at most.
local function room(account)
  local out = 0
  for _, lease in pairs(account.leases) do
    if not lease.ended then
      out = out + lease.out
    end
  end
  local _, unit, burst = unpack(account.terms)
  return (burst - math.min(out, burst)) * unit
end

local function refill_to(account, to)
  local elapsed = math.max(to - account.updated, 0)
  account.updated = math.max(account.updated, to)
  -- Where this is not exact, it is more than there is room for.
  account.value = math.min(account.value + elapsed * account.terms[1], room(account))
end

local function refill(account)
  local ending = {}
  for _, lease in pairs(account.leases) do
    if not lease.ended and lease.ends <= now then
      ending[#ending + 1] = lease
    end
  end
  table.sort(ending, function(a, b) return a.ends < b.ends end)
  for i, lease in ipairs(ending) do
    -- All that end at the same time, then the room there is without them.
    if i == 1 or ending[i - 1].ends < lease.ends then
      refill_to(account, lease.ends)
    end
    lease.ended = true
  end
  refill_to(account, now)
  for name, lease in pairs(account.leases) do
    if lease.ends + SETTLED_AFTER <= now then
      account.leases[name] = nil
    end
  end
end

local function adopt_bucket(request, account)
  if revision <= account.revision then
    return
  end
  local rate, unit, burst = unpack(request.terms)
  local old = account.terms
  if rate ~= old[1] or unit ~= old[2] or burst ~= old[3] then
    refill(account)
    local tokens = quotient(account.value, old[2])
    account.terms = request.terms
    account.value = math.max(math.min(tokens * unit, room(account)), -burst * unit)
  end
  account.revision = revision
end

local function settle(request, account)
  local _, unit, burst = unpack(account.terms)
  local lease = account.leases[reporter]
  if not lease then
    lease = own_lease(request.spent, request.held, 0)
    account.leases[reporter] = lease
  end
  local newly_spent = math.max(request.spent - lease.spent, 0)
  local balance = lease.out - newly_spent - request.held
  if lease.ended then
    balance = math.min(balance, 0)
  end
  lease.out = request.held
  lease.ended = false
  account.value = math.min(math.max(account.value + balance * unit, -burst * unit), room(account))
end

local function exchange_bucket(request, account)
  adopt_bucket(request, account)
  if now < account.opens then
    return RECOVERING, account.opens - now, 0, 0
  end
  refill(account)
  settle(request, account)
  local rate, unit, burst = unpack(account.terms)
  local available = math.max(quotient(account.value, unit), 0)
  local tokens = 0
  if available >= request.least then
    local most = math.max(math.max(quotient(burst, 2 * live), 1) - request.held, 0)
    local fair = quotient_up(available, 2)
    tokens = math.max(math.min(request.want, most, fair), request.least)
  end
  account.value = account.value - tokens * unit
  account.leases[reporter] = own_lease(request.spent, request.held + tokens, now + LEASE_TIME)
  local left = math.max(quotient(account.value, unit), 0)
  if available < request.least then
    local missing = request.least * unit - account.value
    return NONE_UNTIL, quotient_up(missing, rate), LEASE_TIME, left
  end
  return GRANTED, tokens, LEASE_TIME, left
end

local function exchange_quota(request, account)
  local _, starts, ends = unpack(request.terms)
  if revision > account.revision then
    account.revision = revision
    account.terms = request.terms
  end
  if now < starts or now >= ends then
    return OTHER_PERIOD, 0, 0, 0
  end
  local limit = account.terms[1]
  local lease = account.leases[reporter] or own_lease(0, 0, 0)
  local newly_spent = math.max(request.spent - lease.spent, 0)
  account.value = math.max(account.value + newly_spent + request.held - lease.out, 0)
  lease = own_lease(math.max(lease.spent, request.spent), request.held, 0)
  account.leases[reporter] = lease
  local remaining = math.max(limit - account.value, 0)
  if now < account.opens then
    return RECOVERING, account.opens - now, 0, remaining
  end
  if remaining < request.least then
    return NONE_UNTIL, ends - now, ends - now, remaining
  end
  local most = math.min(quotient(remaining, 2 * live), quotient(limit, 1000))
  most = math.max(math.max(most, 1) - request.held, 0)
  local tokens = math.max(math.min(request.want, most, remaining), request.least)
  account.value = account.value + tokens
  lease.out = lease.out + tokens
  return GRANTED, tokens, ends - now, remaining - tokens
end

local function exchange_slots(request, account)
  if revision > account.revision then
    account.revision = revision
    account.terms = request.terms
  end
  local limit = account.terms[1]
  local others = 0
  for name, lease in pairs(account.leases) do
    if lease.ends <= now then
      account.leases[name] = nil
    elseif name ~= reporter then
      others = others + lease.out
    end
  end
  local available = math.max(math.max(limit - others, 0) - request.spent, 0)
  local ends = now + SLOT_LEASE_TIME
  if now < account.opens then
    account.leases[reporter] = own_lease(0, request.spent, ends)
    return RECOVERING, account.opens - now, 0, available
  end
  local tokens = 0
  if available >= request.least then
    local most = math.max(math.max(quotient(limit, 2 * live), 1) - request.spent, 0)
    tokens = math.max(math.min(request.want, most, quotient_up(available, 2)), request.least)
  end
  account.leases[reporter] = own_lease(0, request.spent + tokens, ends)
  local left = math.max(available - tokens, 0)
  if available < request.least then
    return NONE_UNTIL, 0, SLOT_LEASE_TIME, left
  end
  return GRANTED, tokens, SLOT_LEASE_TIME, left
end

local EXCHANGE = { bucket = exchange_bucket, quota = exchange_quota, slots = exchange_slots }

local function exchange(request)
  local account = load(request)
  -- A message that comes after a later one, from a connection given up, would undo it.
  local lease = account.leases[reporter]
  if lease and lease.session == session and tonumber(lease.number) > number then
    return OVERTAKEN, 0, 0, 0
  end
  local outcome, amount, ends_in, left = EXCHANGE[request.kind](request, account)
  local has_new_terms = save(request, account)
  if request.kind == 'bucket' then
    -- From the deepest debt to the brim.
    local rate, unit, burst = unpack(account.terms)
    keep(request, account, math.max(KEPT, quotient_up(2 * burst * unit, rate)) + LEASE_TIME)
  elseif request.kind == 'slots' then
    keep(request, account, KEPT + SLOT_LEASE_TIME)
  elseif has_new_terms then
    redis.call('PEXPIREAT', request.key, integer(quotient_up(request.terms[3] + 2 * DAY, 1000)))
  end
  return outcome, amount, ends_in, left
end

local answers = { now }
for i, key in ipairs(KEYS) do
  local at = 5 + (i - 1) * 9
  local kind = ARGV[at + 1]
  local outcome, amount, ends_in, left = exchange({
    key = key,
    kind = kind,
    lease_time = kind == 'slots' and SLOT_LEASE_TIME or LEASE_TIME,
    terms = { tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4]) },
    spent = tonumber(ARGV[at + 5]),
    held = tonumber(ARGV[at + 6]),
    known = ARGV[at + 7] == '1',
    want = tonumber(ARGV[at + 8]),
    least = tonumber(ARGV[at + 9]),
  })
  for _, n in ipairs({ outcome, amount, ends_in, left }) do
    answers[#answers + 1] = n
  end
end
return answers
