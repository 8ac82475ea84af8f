-- Limits that all gateways share: a list of operations, all at one moment. ARGV: the time in ms, or '' for Redis' own;
-- a document of the operations, the process they are of, and how long a lease lasts.
--
-- An account (a key or a model) is a hash at its base with the sums `requests`, `tokens` and `reserved`, beside it
--   :requests :tokens   lists of "slot:count", a slot being 100 ms, oldest first
--   :held               sorted set, ticket -> when its lease ends; :tickets has its "reserved:counted"
--   :places             sorted set, place -> when its lease ends
--   :turns              hash, process -> "urgency:since:seen" of those that wait for a place
--   :DAY :MONTH         numbers, the tokens of a day and of a month
--
-- Of a process, penstock:settled:PROCESS is the number of the last settlement that was made: a call that was taken for
-- lost is sent again, and may still come, even after its successor.

local SLOTS = 600
local SEEN_MS = 1000
local KEEP_MS = 3600000
local KEEP_SETTLED_MS = 86400000

local now, document = tonumber(ARGV[1]), cjson.decode(ARGV[2])
local process, lease_ms = document.process, document.lease_ms
if not now then
  local time = redis.call('TIME')
  now = time[1] * 1000 + math.floor(time[2] / 1000)
end
local slot = math.floor(now / 100)
local settled = 'penstock:settled:{' .. process .. '}'

local function number(value)
  return tonumber(value or 0) or 0
end

local function read(entry)
  local first, second = string.match(entry, '(%d+):(%d+)')
  return tonumber(first), tonumber(second)
end

-- Windows

local function total(base, what)
  local list = base .. ':' .. what
  local before = number(redis.call('HGET', base, what))
  local sum = before
  while true do
    local first = redis.call('LINDEX', list, 0)
    if not first then
      sum = 0
      break
    end
    local at, count = read(first)
    if at >= slot - SLOTS then break end
    redis.call('LPOP', list)
    sum = sum - count
  end
  if sum ~= before then redis.call('HSET', base, what, sum) end
  return sum
end

local function add(base, what, count)
  if count <= 0 then return end
  local list = base .. ':' .. what
  local sum = total(base, what)
  local last = redis.call('LINDEX', list, -1)
  local at, had = -1, 0
  if last then at, had = read(last) end
  if at >= slot then -- later, where the clock was set back
    redis.call('LSET', list, -1, string.format('%d:%d', at, had + count))
  else
    redis.call('RPUSH', list, string.format('%d:%d', slot, count))
  end
  redis.call('HSET', base, what, sum + count)
  redis.call('PEXPIRE', base, KEEP_MS)
  redis.call('PEXPIRE', list, KEEP_MS)
end

local function falls_to(base, what, most)
  local left, gone_at = total(base, what), now
  for _, entry in ipairs(redis.call('LRANGE', base .. ':' .. what, 0, -1)) do
    if left <= most then break end
    local at, count = read(entry)
    left = left - count
    gone_at = (at + SLOTS + 1) * 100
  end
  return gone_at - now
end

local function empties(base, what)
  local last = redis.call('LINDEX', base .. ':' .. what, -1)
  if not last then return 0 end
  local at = read(last)
  return (at + SLOTS + 1) * 100 - now
end

-- What is under way

-- Returns what had been counted of the ticket, nil if it is not known.
local function release(base, ticket)
  redis.call('ZREM', base .. ':held', ticket)
  local entry = redis.call('HGET', base .. ':tickets', ticket)
  if not entry then return nil end
  redis.call('HDEL', base .. ':tickets', ticket)
  local reserved, counted = read(entry)
  if reserved > 0 then redis.call('HINCRBY', base, 'reserved', -reserved) end -- Redis does not take a "-0"
  return counted
end

local function hold(base, ticket, reserved, counted)
  redis.call('ZADD', base .. ':held', now + lease_ms, ticket)
  redis.call('HSET', base .. ':tickets', ticket, string.format('%d:%d', reserved, counted))
  redis.call('HINCRBY', base, 'reserved', reserved)
  for _, key in ipairs({base, base .. ':held', base .. ':tickets'}) do redis.call('PEXPIRE', key, KEEP_MS) end
end

local function expire(base)
  for _, ticket in ipairs(redis.call('ZRANGEBYSCORE', base .. ':held', '-inf', now)) do release(base, ticket) end
  redis.call('ZREMRANGEBYSCORE', base .. ':places', '-inf', now)
end

-- Places

local function take_place(base, place)
  redis.call('ZADD', base .. ':places', now + lease_ms, place)
  redis.call('PEXPIRE', base .. ':places', KEEP_MS)
end

-- Whether one is free that no other process has waited for longer, or more urgently.
local function is_free(base, places, urgency, since)
  redis.call('ZREMRANGEBYSCORE', base .. ':places', '-inf', now)
  local free = places - redis.call('ZCARD', base .. ':places')
  if free <= 0 then return false end
  local turns = redis.call('HGETALL', base .. ':turns')
  for i = 1, #turns, 2 do
    local theirs, began, seen = string.match(turns[i + 1], '(%-?%d+):(%d+):(%d+)')
    theirs, began = tonumber(theirs), tonumber(began)
    if tonumber(seen) < now - SEEN_MS then
      redis.call('HDEL', base .. ':turns', turns[i])
    elseif turns[i] ~= process and (theirs > urgency or (theirs == urgency and began < since)) then
      free = free - 1
    end
  end
  return free > 0
end

-- Operations

-- The limit that one more request would break, and in how many ms it may no longer; -1: when the period ends.
local function refusal(account)
  local base, quota = account.base, account.quota
  expire(base)
  local reserved = number(redis.call('HGET', base, 'reserved'))
  if quota.rpm and total(base, 'requests') >= quota.rpm then
    return 'requests', falls_to(base, 'requests', quota.rpm - 1)
  end
  if quota.tpm and total(base, 'tokens') + reserved >= quota.tpm then
    local most = quota.tpm - 1 - reserved
    local falls_ms = falls_to(base, 'tokens', math.max(0, most))
    return 'tokens', most >= 0 and falls_ms or math.max(falls_ms, account.lasts_ms)
  end
  if quota.concurrent and redis.call('ZCARD', base .. ':held') >= quota.concurrent then
    return 'concurrent', account.lasts_ms / math.max(1, quota.concurrent)
  end
  for _, period in ipairs(account.periods) do
    local used = redis.call('GET', base .. ':' .. period.name)
    if not used then return 'unknown', 0 end
    if number(used) + reserved >= period.most then
      return period.limit, number(used) >= period.most and -1 or account.lasts_ms
    end
  end
  return nil
end

local function standing(account)
  if not account then return 0, 0, 0, 0 end
  local base = account.base
  local reserved = number(redis.call('HGET', base, 'reserved'))
  local tokens_ms = reserved > 0 and SLOTS * 100 or empties(base, 'tokens')
  return total(base, 'requests'), empties(base, 'requests'), total(base, 'tokens') + reserved, tokens_ms
end

-- {whose limit, which, retry in ms, whether it has its place, the key's standing}
local function book(asked)
  local line = asked.line
  for _, account in ipairs(asked.accounts) do
    local limit, retry_ms = refusal(account)
    if limit then return {account.whose, limit, math.ceil(retry_ms), 0, standing(asked.accounts[1])} end
  end
  local placed = not line or (line.first and is_free(line.base, line.places, line.urgency, now + 1))
  if not placed and not line.may_wait then return {'model', 'places', 0, 0, standing(asked.accounts[1])} end
  for _, account in ipairs(asked.accounts) do
    add(account.base, 'requests', 1)
    hold(account.base, asked.ticket, asked.reserved, 0)
  end
  if placed and line then take_place(line.base, asked.ticket) end
  return {'', '', 0, placed and 1 or 0, standing(asked.accounts[1])}
end

local function take(asked)
  local turns = asked.base .. ':turns'
  local mine = redis.call('HGET', turns, process)
  local since = mine and tonumber(string.match(mine, ':(%d+):')) or now
  local free = is_free(asked.base, asked.places, asked.urgency, since)
  if free then
    take_place(asked.base, asked.place)
    since = now
  end
  if free and not asked.more then
    redis.call('HDEL', turns, process)
  else
    redis.call('HSET', turns, process, string.format('%d:%d:%d', asked.urgency, since, now))
    redis.call('PEXPIRE', turns, KEEP_MS)
  end
  return free and 1 or 0
end

local function step_back(asked)
  return redis.call('HDEL', asked.base .. ':turns', process)
end

-- `late`: of a minute that has passed.
local function spend(account, count, late)
  if not late then add(account.base, 'tokens', count) end
  for _, name in ipairs(account.periods) do
    local key = account.base .. ':' .. name
    if count > 0 and redis.call('EXISTS', key) == 1 then redis.call('INCRBY', key, count) end
  end
end

-- Where a key is not what it was, it takes nobody else's limits with it: what went wrong is the answer. What concerns
-- all of Redis, as where no memory is left, ends the call.
local ended

local function tried(operation, asked)
  local worked, answer = pcall(operation, asked)
  if worked then return answer end
  local said = type(answer) == 'table' and answer.err or tostring(answer)
  local code = string.match(said, '^(%u+) ')
  answer = {err = code and said or 'ERR ' .. said}
  if code and code ~= 'ERR' and code ~= 'WRONGTYPE' then ended = answer end
  return answer
end

local function each(operation, tickets)
  local failed
  for _, one in ipairs(tickets) do
    local answer = tried(operation, one)
    if type(answer) == 'table' then failed = answer end
    if ended then break end
  end
  return failed or #tickets
end

-- A ticket that is not known was never booked here, or its lease has ended: all is counted but what this process has
-- been told that it is.

local function renew_one(one)
  for _, account in ipairs(one.accounts) do
    local counted = release(account.base, one.ticket) or one.told
    spend(account, one.came - counted)
    hold(account.base, one.ticket, one.reserved, math.max(one.came, counted))
  end
  if one.place then take_place(one.place.base, one.place.name) end
end

local function renew(asked)
  if asked.after < number(redis.call('GET', settled)) then return 0 end
  return each(renew_one, asked.tickets)
end

local function settle_one(one)
  for _, account in ipairs(one.accounts) do
    local counted = release(account.base, one.ticket) or one.told
    spend(account, one.tokens - counted, one.late)
  end
  if one.place then redis.call('ZREM', one.place.base .. ':places', one.place.name) end
end

local function settle(asked)
  local last, new = number(redis.call('GET', settled)), {}
  for _, one in ipairs(asked.tickets) do
    if one.number > last then new[#new + 1] = one end
  end
  local answer = each(settle_one, new)
  if #new > 0 and not ended then redis.call('SET', settled, new[#new].number, 'PX', KEEP_SETTLED_MS) end
  return answer
end

local function remember(asked)
  for _, period in ipairs(asked.periods) do
    redis.call('SET', asked.base .. ':' .. period.name, period.used, 'NX', 'EX', period.keep_s)
  end
  return 1
end

-- Writes as the others do first, so that it fails where they would, and leaves nothing.
local function probe()
  return redis.call('ZREMRANGEBYSCORE', 'penstock:probe', '-inf', now)
end

local operations = {
  probe = probe, book = book, take = take, step_back = step_back, renew = renew, settle = settle, remember = remember,
}
local answers = {}
for _, asked in ipairs(document.operations) do
  answers[#answers + 1] = tried(operations[asked.operation], asked)
  if ended then return ended end
end
return answers
