-- The journal face on Redis. Each "--@ name" section is one script; "common" goes in front of every other.
--
-- A script is the unit of atomicity: the server runs it whole, writes it to the AOF and to replicas whole, and nothing
-- else runs beside it. But an error half-way does not undo what was written, so each script reads and decides first and
-- writes after that, and a write cannot fail: types are ours, the memory limit is checked before the first write.
--
-- Every key is declared in KEYS, never made up here: only then does Redis Cluster refuse a script as a whole while its
-- slot is being moved.
--
-- Layout of a partition, all under one hash tag; <s> stands for a stream:
--   :meta         hash    epoch (the fence), seq (of the outbox)
--   :turns :turns0  sets  ids of the latest turns and of those before them: how a repeated commit is recognised
--   :due          zset    <s>\name -> due_ms
--   :receipts     zset    <s>\key -> expires_ms
--   :streams      zset    <s>, all of score 0: the order of the index
--   :index        hash    <s> -> entry
--   :outbox       hash    id -> message
--   :queue :dead  zsets   id -> seq, undelivered and given up
--   :e:<s>        list    events; the place in the list is the version, so that a version cannot be held twice (INV-1)
--   :s:<s>        string  version, snapshot
--   :m:<s>        hash    reminders: name -> due_ms, body
--   :r:<s>        hash    receipts: key -> expires_ms, outbox partition, turn id, reply
-- and of the namespace, under a tag of its own:
--   :meta         hash    format, partitions
--   :owners       hash    partition -> epoch, lease_until_ms, owner
-- <s>\x is "member": the stream, each NUL in it followed by byte 255, then NUL, then x. Names are UTF-8, where 255 never
-- occurs, so the parts can be told apart, and the order is that of (stream, x).

--@ common
local call = redis.call
local pack, unpack_fields = struct.pack, struct.unpack

local function member_prefix(stream)
  if stream:find('\0', 1, true) then stream = stream:gsub('%z', '\0\255') end
  return stream .. '\0'
end

-- What one call to the server may take at most from the Lua stack.
local SLICE = 4000

-- Calls `command key args[first..last]` in slices; returns the last answer.
local function spread(command, key, args, first, last)
  local answer
  for from = first, last, SLICE do
    answer = call(command, key, unpack(args, from, math.min(from + SLICE - 1, last)))
  end
  return answer
end

--@ commit
-- KEYS: of each partition the ten in the order below, then those of each of its turns: events [snapshot] [reminders]
-- [receipts].
-- ARGV: generation size, number of partitions; of each the number of its turns, their ids, and the turns themselves as
-- `statestores.redis_journal` lays them out.
-- Returns the refused turns: {index from 0 over all, kind, what the error needs}.
local STALE_EPOCH, VERSION_CONFLICT, DUPLICATE_TURN = 1, 2, 3
local DELETE, SNAPSHOT, INDEXED, RECEIPT, REMINDERS = 1, 2, 4, 8, 16
local META, TURNS, OLDER_TURNS, DUE, EXPIRY, STREAMS, INDEX, OUTBOX, QUEUE, DEAD -- of the partition at hand

local function has(flags, flag)
  return flags % (flag * 2) >= flag
end

-- Which of the turns ARGV[first..last] were recorded before: the call is then a repeat whose answer was lost (INV-8).
local function recorded_before(first, last)
  local recorded = {}
  for _, set in ipairs({TURNS, OLDER_TURNS}) do
    for from = first, last, SLICE do
      local to = math.min(from + SLICE - 1, last)
      for i, found in ipairs(call('SMISMEMBER', set, unpack(ARGV, from, to))) do
        if found == 1 then recorded[ARGV[from + i - 1]] = true end
      end
    end
  end
  return recorded
end

-- An event begins with its time and four lengths, the first of which is the turn id's; the turn id follows them.
local function made_by(turn_id, event)
  return event and unpack_fields('<I4', event, 9) == #turn_id and event:sub(25, 24 + #turn_id) == turn_id
end

-- A receipt begins with expires_ms, outbox partition and the turn id with its length.
local function receipt_of(turn_id, receipt)
  return unpack_fields('<I4', receipt, 13) == #turn_id and receipt:sub(17, 16 + #turn_id) == turn_id
end

-- Receipts and outbox messages stay: others rely on them (INV-8, INV-9).
local function forget(stream, prefix, events, snapshot, reminders)
  for _, name in ipairs(call('HKEYS', reminders)) do call('ZREM', DUE, prefix .. name) end
  call('ZREM', STREAMS, stream)
  call('HDEL', INDEX, stream)
  call('UNLINK', events, snapshot, reminders)
end

-- An entry is created_ms, updated_ms, the length of the name, the name, the status. The first created_ms stays; a new
-- entry without a name keeps name and status.
local function list(stream, entry)
  local before = call('HGET', INDEX, stream)
  if not before then
    call('ZADD', STREAMS, 0, stream)
  elseif unpack_fields('<I4', entry, 17) == 0 then
    entry = before:sub(1, 8) .. entry:sub(9, 16) .. before:sub(17)
  else
    entry = before:sub(1, 8) .. entry:sub(9)
  end
  call('HSET', INDEX, stream, entry)
end

local function message_done(id)
  if call('HDEL', OUTBOX, id) == 0 then return end
  call('ZREM', QUEUE, id)
  call('ZREM', DEAD, id)
end

local function message_given_up(id, reason)
  local message = call('HGET', OUTBOX, id)
  if not message then return end
  local old_reason, stream = unpack_fields('<I4I4', message)
  local seq = call('ZSCORE', QUEUE, id) or call('ZSCORE', DEAD, id)
  call('HSET', OUTBOX, id, pack('<I4I4', #reason, stream) .. reason .. message:sub(9 + old_reason))
  call('ZREM', QUEUE, id)
  call('ZADD', DEAD, seq, id)
end

local generation, partitions = tonumber(ARGV[1]), tonumber(ARGV[2])
local arg, key, place = 3, 1, 0 -- where the next partition starts; how many turns came before it
local refused = {}
for _ = 1, partitions do
  META, TURNS, OLDER_TURNS, DUE, EXPIRY, STREAMS, INDEX, OUTBOX, QUEUE, DEAD = unpack(KEYS, key, key + 9)
  local turns, ids = tonumber(ARGV[arg]), arg
  arg, key = arg + 1 + turns, key + 10
  local epoch = tonumber(call('HGET', META, 'epoch') or 0)
  local recorded, applied = recorded_before(ids + 1, ids + turns), {}

  for number = 1, turns do
    local id, stream = ARGV[ids + number], ARGV[arg]
    local turn_epoch, expected, events, cleared, set, sent, done, given_up, flags =
      unpack_fields('<i8i8I4I4I4I4I4I4B', ARGV[arg + 1])
    local delete, with_snapshot, indexed, with_receipt, with_reminders
    if flags > 0 then
      delete, with_snapshot, indexed = has(flags, DELETE), has(flags, SNAPSHOT), has(flags, INDEXED)
      with_receipt, with_reminders = has(flags, RECEIPT), has(flags, REMINDERS)
    end

    -- Where its parts are.
    local events_key, snapshot_key, reminders_key, receipts_key = KEYS[key]
    key = key + 1
    if with_snapshot or delete then snapshot_key, key = KEYS[key], key + 1 end
    if with_reminders or delete then reminders_key, key = KEYS[key], key + 1 end
    if with_receipt then receipts_key, key = KEYS[key], key + 1 end
    local at = arg + 2
    local events_at = at; at = at + events
    local snapshot_at = at; if with_snapshot then at = at + 1 end
    local index_at = at; if indexed then at = at + 1 end
    local cleared_at = at; at = at + cleared
    local set_at = at; at = at + 2 * set
    local sent_at = at; at = at + 2 * sent
    local done_at = at; at = at + done
    local given_up_at = at; at = at + 2 * given_up
    local receipt_at = at; if with_receipt then at = at + 2 end
    arg = at

    -- Check, in the order of the reference: fence, repeat, receipt, version. A refused turn writes nothing.
    local head = call('LLEN', events_key)
    local receipt = with_receipt and call('HGET', receipts_key, ARGV[receipt_at])
    local refusal, repeated
    if turn_epoch ~= epoch or epoch == 0 then -- 0: nobody ever owned the partition
      refusal = {place + number - 1, STALE_EPOCH, epoch}
    elseif recorded[id] then
      repeated = true
    elseif receipt then
      repeated = receipt_of(id, receipt)
      refusal = not repeated and {place + number - 1, DUPLICATE_TURN, receipt}
    elseif expected >= 0 and head ~= expected then
      -- Recorded so long ago that its id is in neither set any more?
      repeated = events > 0 and head > expected and made_by(id, call('LINDEX', events_key, expected))
      refusal = not repeated and {place + number - 1, VERSION_CONFLICT, head}
    end

    if refusal then
      refused[#refused + 1] = refusal
    elseif not repeated then
      -- Apply.
      local prefix = member_prefix(stream)
      if delete then
        forget(stream, prefix, events_key, snapshot_key, reminders_key)
        head = 0
      end
      if events > 0 then head = spread('RPUSH', events_key, ARGV, events_at, events_at + events - 1) end
      if with_snapshot then call('SET', snapshot_key, pack('<i8', head) .. ARGV[snapshot_at]) end
      if indexed then list(stream, ARGV[index_at]) end
      for i = cleared_at, cleared_at + cleared - 1 do
        call('HDEL', reminders_key, ARGV[i])
        call('ZREM', DUE, prefix .. ARGV[i])
      end
      for i = set_at, set_at + 2 * set - 1, 2 do
        local due = unpack_fields('<i8', ARGV[i + 1])
        call('HSET', reminders_key, ARGV[i], ARGV[i + 1])
        call('ZADD', DUE, due, prefix .. ARGV[i])
      end
      for i = sent_at, sent_at + 2 * sent - 1, 2 do
        if call('HSETNX', OUTBOX, ARGV[i], ARGV[i + 1]) == 1 then
          call('ZADD', QUEUE, call('HINCRBY', META, 'seq', 1), ARGV[i])
        end
      end
      for i = done_at, done_at + done - 1 do message_done(ARGV[i]) end
      for i = given_up_at, given_up_at + 2 * given_up - 1, 2 do message_given_up(ARGV[i], ARGV[i + 1]) end
      if with_receipt then
        call('HSET', receipts_key, ARGV[receipt_at], ARGV[receipt_at + 1])
        call('ZADD', EXPIRY, unpack_fields('<i8', ARGV[receipt_at + 1]), prefix .. ARGV[receipt_at])
      end
      recorded[id] = true
      applied[#applied + 1] = id
    end
  end
  place = place + turns

  -- Two generations: when the newer set is full it becomes the older, so the latest `generation` ids are known.
  if #applied > 0 then
    spread('SADD', TURNS, applied, 1, #applied)
    if call('SCARD', TURNS) >= generation then call('RENAME', TURNS, OLDER_TURNS) end
  else
    -- A repeat must still be waited for by WAIT and WAITAOF, which wait for the connection's last write.
    call('HSET', META, 'epoch', string.format('%.0f', epoch))
  end
end
return refused

--@ open
-- KEYS: meta of the namespace. ARGV: format, partitions. Makes the namespace if it is new. Returns format and partitions.
if call('EXISTS', KEYS[1]) == 0 then
  call('HSET', KEYS[1], 'format', ARGV[1], 'partitions', ARGV[2])
end
return call('HMGET', KEYS[1], 'format', 'partitions')

--@ acquire
-- KEYS: owners, meta of the namespace. ARGV: owner, now_ms, lease_until_ms, force, format, partitions of the namespace,
-- partitions… All or none. Returns {'held', partition, who}, {'other'} or {'taken', epochs…}.
-- The server may have lost everything since the namespace was opened, or another program have made it anew or migrated
-- it. What is missing is made again: else the next one to open it might give it another number of partitions.
-- An epoch is at least the server's time in microseconds: a server that has lost its tail (a replica that lagged and was
-- promoted, the last second of everysec) no longer knows the latest epochs, and must not give them out again (INV-2).
-- They fit a double, and so Lua, until the year 2255.
local time = call('TIME')
local least = tonumber(time[1]) * 1000000 + tonumber(time[2])
local owner, now, lease_until, force = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4] == '1'
local epochs = {'taken'}
local record = call('HMGET', KEYS[2], 'format', 'partitions')
if record[1] and (record[1] ~= ARGV[5] or record[2] ~= ARGV[6]) then return {'other'} end
for i = 7, #ARGV do
  local held = call('HGET', KEYS[1], ARGV[i])
  local epoch, until_ms = 0, 0
  if held then epoch, until_ms = unpack_fields('<i8i8', held) end
  if held and not force and until_ms > now and held:sub(17) ~= owner then
    return {'held', ARGV[i], held}
  end
  epochs[#epochs + 1] = math.max(epoch + 1, least)
end
for i = 7, #ARGV do
  call('HSET', KEYS[1], ARGV[i], pack('<i8i8', epochs[i - 5], lease_until) .. owner)
end
if not record[1] then call('HSET', KEYS[2], 'format', ARGV[5], 'partitions', ARGV[6]) end
return epochs

--@ fence
-- KEYS: meta of a partition. ARGV: epoch. From here on no older epoch can commit (INV-2). A repeat writes again, so that
-- WAIT and WAITAOF wait for it.
if tonumber(call('HGET', KEYS[1], 'epoch') or 0) <= tonumber(ARGV[1]) then
  call('HSET', KEYS[1], 'epoch', ARGV[1])
end
return 1

--@ renew
-- KEYS: owners. ARGV: owner ('' for any), lease_until_ms, then (partition, epoch) pairs. Returns which pairs, from
-- 0, were still so owned: they have that lease now.
local kept = {}
for i = 3, #ARGV, 2 do
  local held = call('HGET', KEYS[1], ARGV[i])
  if held and unpack_fields('<i8', held) == tonumber(ARGV[i + 1]) and (ARGV[1] == '' or held:sub(17) == ARGV[1]) then
    kept[#kept + 1] = (i - 3) / 2
    call('HSET', KEYS[1], ARGV[i], held:sub(1, 8) .. pack('<i8', tonumber(ARGV[2])) .. held:sub(17))
  end
end
return kept

--@ hash
-- KEYS: a hash. Returns {field, value, …}, in whatever way the client would have shaped a HGETALL.
return call('HGETALL', KEYS[1])

--@ load
-- KEYS: events, snapshot. ARGV: version or -1 for the head, most events in one answer.
-- Returns {version, snapshot or '', event…}.
local head, wanted = call('LLEN', KEYS[1]), tonumber(ARGV[1])
local version = wanted < 0 and head or math.min(wanted, head)
local first, snapshot = 0, ''
local header = call('GETRANGE', KEYS[2], 0, 7)
if header ~= '' then
  local of = unpack_fields('<i8', header)
  if of <= version then first, snapshot = of, call('GET', KEYS[2]) end
end
local answer = {version, snapshot}
if first < version then
  local last = math.min(version, first + tonumber(ARGV[2])) - 1
  for i, event in ipairs(call('LRANGE', KEYS[1], first, last)) do answer[i + 2] = event end
end
return answer

--@ purge
-- KEYS: expiry, then the hash of receipts of each candidate. ARGV: now_ms, then (stream, key) of each.
-- Looks again at what has expired: a receipt may have been replaced since the candidates were read.
local gone = 0
for i = 2, #KEYS do
  local name = ARGV[2 * i - 1]
  local member = member_prefix(ARGV[2 * i - 2]) .. name
  local expires = call('ZSCORE', KEYS[1], member)
  if expires and tonumber(expires) <= tonumber(ARGV[1]) then
    call('HDEL', KEYS[i], name)
    call('ZREM', KEYS[1], member)
    gone = gone + 1
  end
end
return gone

--@ outbox
-- KEYS: outbox, queue to read, the other queue. ARGV: id after which to start, limit. Returns {id, message, …} in order.
local after = call('ZSCORE', KEYS[2], ARGV[1]) or call('ZSCORE', KEYS[3], ARGV[1])
local answer = {}
local ids = call('ZRANGEBYSCORE', KEYS[2], after and '(' .. after or '-inf', '+inf', 'LIMIT', 0, ARGV[2])
for i, id in ipairs(ids) do
  answer[2 * i - 1], answer[2 * i] = id, call('HGET', KEYS[1], id)
end
return answer

--@ index
-- KEYS: streams, index. ARGV: range from, to; most matches, most entries to look at; start of the id, name, created from,
-- created before ('' each: any); statuses…
-- Returns {the last stream looked at, '' at the end of the range; stream, entry, …}.
local most, budget = tonumber(ARGV[3]), tonumber(ARGV[4])
local id_prefix, name, from, before = ARGV[5], ARGV[6], tonumber(ARGV[7]), tonumber(ARGV[8])
local statuses = #ARGV > 8 and {}
for i = 9, #ARGV do statuses[ARGV[i]] = true end

local function matches(stream, entry)
  local created, _, length = unpack_fields('<i8i8I4', entry)
  if from and created < from or before and created >= before then return false end
  if name ~= '' and entry:sub(21, 20 + length) ~= name then return false end
  if statuses and not statuses[entry:sub(21 + length)] then return false end
  if id_prefix == '' then return true end
  local slash = stream:find('/', 1, true) or #stream
  return stream:sub(slash + 1, slash + #id_prefix) == id_prefix
end

local streams = call('ZRANGEBYLEX', KEYS[1], ARGV[1], ARGV[2], 'LIMIT', 0, budget)
local answer = {#streams == budget and streams[budget] or ''}
for _, stream in ipairs(streams) do
  local entry = call('HGET', KEYS[2], stream)
  if matches(stream, entry) then
    answer[#answer + 1] = stream
    answer[#answer + 1] = entry
    if #answer > 2 * most then
      answer[1] = stream
      break
    end
  end
end
return answer
