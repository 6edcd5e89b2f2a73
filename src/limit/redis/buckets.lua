-- Token buckets, many in one call. Whole numbers below 2^53 only, so that a double keeps each exactly.
--
-- KEYS  the buckets, group after group: what one request takes from, all or nothing.
-- ARGV  for each group: how many buckets, and 1 if what is taken was given away already and may exceed them, 2
--       if it was taken before and is given back, 3 and 4 as 0 and 1 if the buckets stay empty for a while before;
--       for each of its buckets: units that a microsecond brings, units of a token, of a full bucket, that may be
--       lacking, to be taken; with 2, when it was taken, and the units that were spent then: what time has brought
--       back since is not given twice; and with 3 and 4, for how many microseconds it stays empty.
-- A bucket is kept as text: "microseconds-since-1970 units-spent units-of-a-token units-of-a-full-bucket", and while it
-- stays empty " microseconds-since-1970" of when that ends, so that no other limit than before forgives it.
-- Answers the time; then for each group 1 if it was taken, else 0, and for each of its buckets the units spent
-- thereafter.
local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000000 + tonumber(clock[2])
local answers, key, arg = { now }, 1, 1
while key <= #KEYS do
  local count, kind = tonumber(ARGV[arg]), ARGV[arg + 1]
  arg = arg + 2
  local buckets, taken = {}, 1
  for i = 1, count do
    local per, token, size = tonumber(ARGV[arg]), tonumber(ARGV[arg + 1]), tonumber(ARGV[arg + 2])
    local slack, cost = tonumber(ARGV[arg + 3]), tonumber(ARGV[arg + 4])
    arg = arg + 5
    if kind == '2' then
      local since, then_spent = tonumber(ARGV[arg]), tonumber(ARGV[arg + 1])
      arg = arg + 2
      cost = -math.min(cost, math.max(0, then_spent - math.max(0, now - since) * per))
    end
    local pause = 0
    if kind == '3' or kind == '4' then
      pause = tonumber(ARGV[arg])
      arg = arg + 1
    end
    local at, spent, ends, write = now, 0, 0, pause > 0
    -- A key that somebody else uses is an error here, or another text: it counts as a full bucket.
    local kept = redis.pcall('GET', KEYS[key])
    if type(kept) == 'string' then
      local k_at, k_spent, k_token, k_size, k_ends = string.match(kept, '^(%d+) (%d+) (%d+) (%d+) ?(%d*)$')
      if k_at then
        at, spent = tonumber(k_at), tonumber(k_spent)
        k_token, k_size, ends = tonumber(k_token), tonumber(k_size), tonumber(k_ends) or 0
        if k_token ~= token and k_token > 0 then spent = math.ceil(spent / k_token * token) end
        -- Another limit than before: what does not fit into it is forgiven.
        if k_token ~= token or k_size ~= size then spent = math.min(spent, size + slack) end
        -- A clock that was set back, or another server's: a second is waited for, more is not.
        if at > now + 1000000 then at, ends, write = now, ends - at + now, true end
        if at < now then
          spent = math.max(0, spent - (now - at) * per)
          at = now
        end
      end
    end
    if pause > 0 then ends = math.max(ends, now + pause) end
    -- With odd numbers a long pause is cut to what is counted exactly.
    if ends > at then spent = math.max(spent, math.min((ends - at) * per + size, 4503599627370496)) end
    if spent + cost - size > slack and (kind == '0' or kind == '3') then taken = 0 end
    buckets[i] = { KEYS[key], at, spent, per, token, size, cost, ends, write }
    key = key + 1
  end
  answers[#answers + 1] = taken
  for i = 1, count do
    local name, at, spent, per, token, size, cost, ends, write = unpack(buckets[i])
    if taken == 1 then spent = math.max(0, spent + cost) end
    if write or (taken == 1 and cost ~= 0) then
      -- Kept until it is full again, and a second for clocks that are set back.
      local life = math.ceil((spent / per + at - now) / 1000) + 1000
      local text = string.format('%.0f %.0f %.0f %.0f', at, spent, token, size)
      if ends > now then text = text .. string.format(' %.0f', ends) end
      redis.call('SET', name, text, 'PX', string.format('%.0f', life))
    end
    answers[#answers + 1] = spent
  end
end
return answers
