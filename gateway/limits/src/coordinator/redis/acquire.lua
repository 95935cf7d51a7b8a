-- One exchange: several accounts of one tenant, each for itself. What it does with an account is what
-- `ledger.rs` does, number for number; the comments there say why. What is told from elsewhere is for Redis alone:
-- nothing else loses what it knows. Numbers are integers below 2^53, which doubles hold exactly.
--
-- LEASE_TIME, SLOT_LEASE_TIME, KEPT, SETTLED_AFTER, AGAIN, TOLD_WITHIN and TOLD_SOON are set before this text is loaded, in microseconds.
--
-- KEYS: for each account its hash:
--   run     id of the Redis process that wrote it last, and when the account opens
--   terms   kind, revision and the three numbers of the terms
--   state   level of a bucket, or what a quota has debited; when it was brought up to date; what leases that
--           have not ended hold, all together; the time before which none of them ends; and of these leases, all
--           together: units that come to them each microsecond, units promised until they end, what they want
--   @name   the lease of a reporter: spent, out, ends, ended, the session and number of its last exchange, rate,
--           since, want; that of `elsewhere`, of a quota, holds what was used by whom nobody has told yet
-- ARGV: reporter, its session, number of the exchange, revision, gateways that are live, the ids of processes
--   that all of these have told what they know of quotas, of what is told from elsewhere the reporter who asked;
--   then for each account: kind, three numbers of its terms, spent, held, known, has ended, want, least, paced.
--   From elsewhere: spent by all, held is what of it the asker has spent at most, want is what it has spent in all.
-- Returns the time; then for each account: outcome, its tokens or wait, ends_in, left, rate, unit, again_in.

local GRANTED, NONE_UNTIL, RECOVERING, OTHER_PERIOD, OVERTAKEN = 0, 1, 2, 3, 4

-- No lease ends then.
local NEVER = 2 ^ 53 - 1

local DAY = 24 * 60 * 60 * 1000000

local MOST_WANTED = 1000000

local TOKENS_UNTIL_AGAIN = 2

local ELSEWHERE = '@elsewhere'

local reporter = '@' .. ARGV[1]
local session = ARGV[2]
local number = tonumber(ARGV[3])
local revision = tonumber(ARGV[4])
local live = tonumber(ARGV[5])
local told = ARGV[6]
local asker = ARGV[7]

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]

-- The process began in this second or before. It cannot have begun after now, whatever its clock did.
local server = redis.call('INFO', 'server')
local run = string.match(server, 'run_id:(%x+)')
local uptime = tonumber(string.match(server, 'uptime_in_seconds:(%-?%d+)'))
local began = math.min((time[1] - uptime + 1) * 1000000, now)

-- Rounded down. Exact below 2^53: two quotients by b that differ do so by more than is rounded off.
local function quotient(a, b)
  return math.floor(a / b)
end

local function quotient_up(a, b)
  return quotient(a + b - 1, b)
end

local function integer(n)
  return string.format('%.0f', n)
end

local function write_terms(kind, account)
  local terms = account.terms
  return string.format('%s %.0f %.0f %.0f %.0f', kind, account.revision, terms[1], terms[2], terms[3])
end

local function read_terms(text)
  local kind, at, a, b, c = string.match(text, '^(%S+) (%S+) (%S+) (%S+) (%S+)')
  return kind, tonumber(at), { tonumber(a), tonumber(b), tonumber(c) }
end

local function write_state(account)
  return string.format('%.0f %.0f %.0f %.0f %.0f %.0f %.0f', account.value, account.updated, account.out,
    account.next_end, account.rate, account.promised, account.want)
end

local function read_lease(text)
  local spent, out, ends, ended, of, at, rate, since, want =
    string.match(text, '^(%S+) (%S+) (%S+) (%S+) (%S+) (%S+) (%S+) (%S+) (%S+)')
  return {
    spent = tonumber(spent),
    out = tonumber(out),
    ends = tonumber(ends),
    ended = ended == '1',
    session = of,
    number = at,
    rate = tonumber(rate),
    since = tonumber(since),
    want = tonumber(want),
  }
end

local function write_lease(lease)
  return string.format('%.0f %.0f %.0f %d %s %s %.0f %.0f %.0f', lease.spent, lease.out, lease.ends,
    lease.ended and 1 or 0, lease.session, lease.number, lease.rate, lease.since, lease.want)
end

-- This reporter's lease, after this exchange.
local function own_lease(spent, out, ends)
  return {
    spent = spent,
    out = out,
    ends = ends,
    ended = false,
    session = session,
    number = ARGV[3],
    rate = 0,
    since = 0,
    want = 0,
    changed = true,
  }
end

-- Units that have come to it.
local function came(lease, at)
  return lease.rate * math.max(math.min(at, lease.ends) - lease.since, 0)
end

-- Units that will have come to it when it ends.
local function promised(lease)
  return came(lease, lease.ends)
end

local function open(request, lost)
  local opens = (lost and now or began) + request.lease_time
  return {
    revision = revision,
    terms = request.terms,
    value = 0,
    updated = opens,
    opens = opens,
    out = 0,
    next_end = NEVER,
    rate = 0,
    promised = 0,
    want = 0,
    leases = {},
    gone = {},
  }
end

local function forget(account, name)
  account.leases[name] = nil
  account.gone[#account.gone + 1] = name
end

-- Of a lease that ended so long ago, nothing is put right any more.
local function is_settled(account, lease)
  return lease.ended and lease.ends + SETTLED_AFTER <= account.updated
end

-- What it holds and was promised is no longer there for others, or is again.
local function take_out(account, lease)
  account.out = account.out - lease.out
  account.rate = account.rate - lease.rate
  account.promised = account.promised - promised(lease)
  account.want = account.want - lease.want
end

local function read_leases(request, account)
  if account.is_whole then
    return
  end
  account.is_whole = true
  local fields = redis.call('HGETALL', request.key)
  for i = 1, #fields, 2 do
    if string.sub(fields[i], 1, 1) == '@' then
      account.leases[fields[i]] = read_lease(fields[i + 1])
    end
  end
end

-- The account as it was left; or a new one, if it is not there or of another kind. With the lease of this
-- reporter; those of others are read only when one of them may have ended.
local function load(request)
  local found = redis.call('HMGET', request.key, 'run', 'terms', 'state', reporter, ELSEWHERE)
  local run_text, terms_text, state_text, lease_text = found[1], found[2], found[3], found[4]
  if not terms_text then
    return open(request, request.known)
  end
  local kind, at, terms = read_terms(terms_text)
  if kind ~= request.kind then
    redis.call('DEL', request.key)
    return open(request, true)
  end
  local account = open(request, true)
  account.revision, account.terms = at, terms
  account.old_run, account.old_terms, account.old_state = run_text, terms_text, state_text
  local written_by, opens = string.match(run_text, '^(%S+) (%S+)')
  local value, updated, out, next_end, rate, promised_in_all, want =
    string.match(state_text, '^(%S+) (%S+) (%S+) (%S+) (%S+) (%S+) (%S+)')
  account.value = tonumber(value)
  -- Another process: what was given last may not have reached it. All that is out there ends before it opens.
  if written_by ~= run and kind == 'bucket' then
    redis.call('DEL', request.key)
    account.old_run, account.old_terms, account.old_state = nil, nil, nil
    account.value = math.min(account.value, 0)
    return account
  end
  account.updated = tonumber(updated)
  if written_by == run then
    account.opens = tonumber(opens)
  end
  account.out = tonumber(out)
  account.next_end = tonumber(next_end)
  account.rate = tonumber(rate)
  account.promised = tonumber(promised_in_all)
  account.want = tonumber(want)
  -- The clock was set back: it is followed.
  local ahead = now + request.lease_time
  account.opens = math.min(account.opens, ahead)
  local is_back = kind ~= 'quota' and account.updated > ahead
  if lease_text then
    account.leases[reporter] = read_lease(lease_text)
  end
  if found[5] then
    account.leases[ELSEWHERE] = read_lease(found[5])
  end
  if account.next_end <= now or is_back then
    read_leases(request, account)
  end
  if is_back then
    for name, lease in pairs(account.leases) do
      if is_settled(account, lease) then
        forget(account, name)
      end
    end
    account.updated = now
    for _, lease in pairs(account.leases) do
      if not lease.ended then
        account.promised = account.promised - promised(lease)
        lease.ends = math.min(lease.ends, ahead)
        lease.since = math.min(lease.since, now)
        lease.changed = true
        account.promised = account.promised + promised(lease)
      end
    end
  end
  return account
end

-- Writes what has changed. Returns whether the terms have.
local function save(request, account)
  local changed, gone = {}, {}
  local function put(name, old, new)
    if new ~= old then
      changed[#changed + 1] = name
      changed[#changed + 1] = new
    end
  end
  if account.is_whole then
    account.next_end = NEVER
  end
  for name, lease in pairs(account.leases) do
    if not lease.ended then
      account.next_end = math.min(account.next_end, lease.ends)
    end
    if lease.changed then
      put(name, nil, write_lease(lease))
    end
  end
  for _, name in ipairs(account.gone) do
    if not account.leases[name] then
      gone[#gone + 1] = name
    end
  end
  local terms = write_terms(request.kind, account)
  put('run', account.old_run, run .. ' ' .. integer(account.opens))
  put('terms', account.old_terms, terms)
  put('state', account.old_state, write_state(account))
  if #changed > 0 then
    redis.call('HSET', request.key, unpack(changed))
  end
  if #gone > 0 then
    redis.call('HDEL', request.key, unpack(gone))
  end
  return terms ~= account.old_terms
end

-- Keeps the account for this many microseconds from now.
local function keep(request, account, micros)
  local ahead = math.max(account.updated - now, account.opens - now, 0)
  redis.call('PEXPIRE', request.key, integer(quotient_up(micros + ahead, 1000)))
end

-- What a bucket's level can be at most.
local function room(account)
  local _, unit, burst = unpack(account.terms)
  return math.max((burst - math.min(account.out, burst)) * unit - account.promised, 0)
end

local function refill_to(account, to)
  local elapsed = math.max(to - account.updated, 0)
  account.updated = math.max(account.updated, to)
  -- Where this is not exact, it is more than there is room for.
  account.value = math.min(account.value + elapsed * (account.terms[1] - account.rate), room(account))
end

local function refill(account)
  local ending = {}
  for _, lease in pairs(account.leases) do
    if not lease.ended and lease.ends <= now then
      ending[#ending + 1] = lease
    end
  end
  table.sort(ending, function(a, b) return a.ends < b.ends end)
  for _, lease in ipairs(ending) do
    refill_to(account, lease.ends)
    take_out(account, lease)
    lease.ended = true
    lease.changed = true
  end
  refill_to(account, now)
  for name, lease in pairs(account.leases) do
    if is_settled(account, lease) then
      forget(account, name)
    end
  end
end

local function adopt_bucket(request, account)
  if revision < account.revision then
    return
  end
  local rate, unit, burst = unpack(request.terms)
  local old = account.terms
  if rate ~= old[1] or unit ~= old[2] or burst ~= old[3] then
    read_leases(request, account)
    refill(account)
    for _, lease in pairs(account.leases) do
      if lease.rate > 0 then
        local given = quotient_up(promised(lease), old[2])
        if not lease.ended then
          account.value = account.value - (given * old[2] - came(lease, account.updated))
          account.out = account.out + given
          account.rate = account.rate - lease.rate
          account.promised = account.promised - promised(lease)
          account.want = account.want - lease.want
        end
        lease.out = lease.out + given
        lease.rate = 0
        lease.want = 0
        lease.changed = true
      end
    end
    local tokens = quotient(account.value, old[2])
    account.terms = request.terms
    account.value = math.min(math.max(tokens * unit, -burst * unit), room(account))
  end
  account.revision = revision
end

local function settle(request, account)
  local _, unit, burst = unpack(account.terms)
  local lease = account.leases[reporter]
  if not lease then
    lease = own_lease(request.spent, request.held, 0)
    account.out = account.out + request.held
  end
  local newly_spent = request.spent - lease.spent
  local balance = (lease.out - newly_spent - request.held) * unit + came(lease, account.updated)
  local wanted = lease.want
  if lease.ended then
    balance = math.min(balance, 0)
    wanted = 0
  else
    take_out(account, lease)
  end
  account.out = account.out + request.held
  account.value = math.min(math.max(account.value + balance, -burst * unit), room(account))
  return wanted
end

local function again(terms)
  local in_all, unit, burst = unpack(terms)
  local enough = quotient_up(TOKENS_UNTIL_AGAIN * live * unit, in_all)
  return math.min(math.max(AGAIN, enough), quotient(quotient_up(burst * unit, in_all), 8))
end

local function promise(request, account, lease, tokens, wanted_before)
  local in_all, unit, burst = unpack(account.terms)
  local want = math.min(request.want, MOST_WANTED)
  local is_first = wanted_before == 0
  local weight = is_first and want or quotient_up(wanted_before + want, 2)
  local part = quotient(in_all * weight, math.max(weight + account.want, 1))
  local of_use = math.min(part, quotient(math.max(want - tokens, 0) * unit, 2 * LEASE_TIME))
  local place = math.min(room(account) - account.value, quotient(burst * unit, 2) - account.rate * LEASE_TIME)
  if account.value < 0 then
    place = 0
  end
  local pace = math.min(of_use, in_all - account.rate, quotient(math.max(place, 0), LEASE_TIME))
  if is_first then
    pace = math.min(pace, quotient(in_all, live))
  end
  lease.rate = pace
  lease.want = weight
  account.rate = account.rate + pace
  account.promised = account.promised + promised(lease)
  account.want = account.want + weight
  local is_little = 3 * pace < of_use or 2 * (in_all - account.rate) > in_all or is_first and pace < of_use
  return pace, unit, is_little and again(account.terms) or 0
end

local function exchange_bucket(request, account)
  adopt_bucket(request, account)
  if now < account.opens then
    return RECOVERING, account.opens - now, 0, 0
  end
  refill(account)
  local wanted_before = settle(request, account)
  local rate, unit, burst = unpack(account.terms)
  local available = math.max(quotient(account.value, unit), 0)
  local tokens = 0
  local most = math.max(math.max(quotient(burst, 2 * live), 1) - request.held, 0)
  if available >= request.least then
    local fair = quotient_up(available, 2)
    tokens = math.max(math.min(request.want, most, fair), request.least)
  end
  account.value = account.value - tokens * unit
  account.out = account.out + tokens
  local lease = own_lease(request.spent, request.held + tokens, account.updated + LEASE_TIME)
  lease.since = account.updated
  account.leases[reporter] = lease
  local pace, of_unit, again_in = 0, 0, 0
  if request.paced and tokens < math.min(request.want, most) then
    pace, of_unit, again_in = promise(request, account, lease, tokens, wanted_before)
  end
  local left = math.max(quotient(account.value, unit), 0)
  if available < request.least then
    local missing = request.least * unit - account.value
    return NONE_UNTIL, quotient_up(missing, rate), LEASE_TIME, left, pace, of_unit, again_in
  end
  return GRANTED, tokens, LEASE_TIME, left, pace, of_unit, again_in
end

local function exchange_quota(request, account)
  local _, starts, ends = unpack(request.terms)
  if revision >= account.revision then
    account.revision = revision
    account.terms = request.terms
  end
  if now < starts or now >= ends then
    return OTHER_PERIOD, 0, 0, 0
  end
  local limit = account.terms[1]
  local elsewhere = account.leases[ELSEWHERE]
  if reporter == ELSEWHERE then
    -- What all have used, as far as it is known there: at least that, with what the asker has told itself, or is about
    -- to, in place of what is known there of it.
    local of_asker = math.min(request.held, request.want)
    local used = request.spent
    local own = redis.call('HMGET', request.key, '@' .. asker)[1]
    if own then
      local lease = read_lease(own)
      used = math.max(used + lease.spent + lease.out - of_asker, 0)
    else
      account.leases['@' .. asker] = own_lease(of_asker, 0, NEVER)
    end
    local untold = math.max(used - account.value, 0) + (elsewhere and elsewhere.out or 0)
    account.value = math.max(account.value, used)
    account.leases[ELSEWHERE] = own_lease(request.spent, untold, NEVER)
    return NONE_UNTIL, 0, 0, math.max(limit - account.value, 0)
  end
  -- Who knew the account before it was lost, or was there before, tells of what was told already.
  if elsewhere and not account.leases[reporter] and (request.known or request.has_ended) then
    local covered = math.min(elsewhere.out, request.spent + request.held, account.value)
    elsewhere.out = elsewhere.out - covered
    elsewhere.changed = true
    account.value = account.value - covered
  end
  local lease = account.leases[reporter] or own_lease(0, 0, NEVER)
  local accounted = math.max(account.value + request.spent - lease.spent + request.held - lease.out, 0)
  if request.has_ended then
    account.value = math.max(account.value, accounted)
    lease = own_lease(math.max(request.spent, lease.spent + lease.out), 0, NEVER)
  else
    account.value = accounted
    lease = own_lease(request.spent, request.held, NEVER)
  end
  account.leases[reporter] = lease
  local remaining = math.max(limit - account.value, 0)
  local is_told = string.find(told, run, 1, true)
  local opens = math.max(account.opens, is_told and 0 or began + TOLD_WITHIN)
  if now < opens then
    local soon = is_told and opens or math.min(opens, now + TOLD_SOON)
    return RECOVERING, soon - now, 0, remaining
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
  if revision >= account.revision then
    account.revision = revision
    account.terms = request.terms
  end
  local limit = account.terms[1]
  account.updated = now
  for name, lease in pairs(account.leases) do
    if lease.ends <= now then
      account.out = account.out - lease.out
      forget(account, name)
    end
  end
  local own = account.leases[reporter]
  local others = account.out - (own and own.out or 0)
  local available = math.max(math.max(limit - others, 0) - request.spent, 0)
  local ends = now + SLOT_LEASE_TIME
  if now < account.opens then
    account.leases[reporter] = own_lease(0, request.spent, ends)
    account.out = others + request.spent
    return RECOVERING, account.opens - now, 0, available
  end
  local tokens = 0
  if available >= request.least then
    local most = math.max(math.max(quotient(limit, 2 * live), 1) - request.spent, 0)
    tokens = math.max(math.min(request.want, most, quotient_up(available, 2)), request.least)
  end
  account.leases[reporter] = own_lease(0, request.spent + tokens, ends)
  account.out = others + request.spent + tokens
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
    return OVERTAKEN, 0, 0, 0, 0, 0, 0
  end
  local outcome, amount, ends_in, left, rate, unit, again_in = EXCHANGE[request.kind](request, account)
  local has_new_terms = save(request, account)
  if request.kind == 'bucket' then
    -- From the deepest debt to the brim.
    local in_all, of_unit, burst = unpack(account.terms)
    keep(request, account, math.max(KEPT, quotient_up(2 * burst * of_unit, in_all)) + LEASE_TIME)
  elseif request.kind == 'slots' then
    keep(request, account, KEPT + SLOT_LEASE_TIME)
  elseif has_new_terms then
    redis.call('PEXPIREAT', request.key, integer(quotient_up(request.terms[3] + 2 * DAY, 1000)))
  end
  return outcome, amount, ends_in, left, rate or 0, unit or 0, again_in or 0
end

local answers = { now }
for i, key in ipairs(KEYS) do
  local at = 7 + (i - 1) * 11
  local kind = ARGV[at + 1]
  local numbers = { exchange({
    key = key,
    kind = kind,
    lease_time = kind == 'slots' and SLOT_LEASE_TIME or LEASE_TIME,
    terms = { tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4]) },
    spent = tonumber(ARGV[at + 5]),
    held = tonumber(ARGV[at + 6]),
    known = ARGV[at + 7] == '1',
    has_ended = ARGV[at + 8] == '1',
    want = tonumber(ARGV[at + 9]),
    least = tonumber(ARGV[at + 10]),
    paced = ARGV[at + 11] == '1',
  }) }
  for _, n in ipairs(numbers) do
    answers[#answers + 1] = n
  end
end
return answers
