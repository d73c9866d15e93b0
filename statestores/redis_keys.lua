-- The keys face on Redis; read the head of redis_journal.lua for how scripts are written here.
--
-- Layout, all under one hash tag per namespace, since a transaction may name any keys and Redis Cluster runs a script in
-- one slot only:
--   :meta              hash    etag (the counter of tags)
--   :names             zset    every key, all of score 0: the order for prefixes
--   :expiry            zset    key -> expires_ms
--   :done :done0       hashes  request -> answer, the latest and those before them: how a repeated request is recognised
--   :k:<key>           string  etag, expires_ms (0: never), value
-- A value with a TTL also expires physically, well after it is hidden, should nobody ever purge.

--@ common
local call = redis.call
local pack, unpack_fields = struct.pack, struct.unpack
local GENERATION = 1000

-- The answer that was given to a request before, or nil. Written again, so that WAIT and WAITAOF wait for the repeat too:
-- they wait for the connection's last write.
local function answered(request, done, older)
  local given = call('HGET', done, request) or call('HGET', older, request)
  if not given then return nil end
  call('HSET', done, request, given)
  return cmsgpack.unpack(given)
end

local function answer(request, done, older, given)
  call('HSET', done, request, cmsgpack.pack(given))
  if call('HLEN', done) >= GENERATION then call('RENAME', done, older) end
  return given
end

--@ write
-- KEYS: meta, names, expiry, done, older done, then one of each operation.
-- ARGV: mode, request, now_ms, then of each operation: key, what, wanted etag, expires_ms, ms until physical expiry, value.
--   mode 'each': every operation by itself; 'all': all or none; 'check': none, say only what 'all' would
--   what 's' set, 'f' set what is absent, 'd' delete
-- Returns what was refused as {index from 0, etag that is there or '', …}; of 'all' and 'check' the first only.
local META, NAMES, EXPIRY, DONE, OLDER = unpack(KEYS, 1, 5)
local mode, request, now = ARGV[1], ARGV[2], tonumber(ARGV[3])
local FIELDS = 6

local before = answered(request, DONE, OLDER)
if before then return before end

-- A tag is greater than every one before and at least the server's time in microseconds, for the reason given for epochs
-- (see "acquire" in redis_journal.lua): a server that has lost its tail must not give the same tags again.
local time = call('TIME')
local latest = math.max(tonumber(call('HGET', META, 'etag') or 0), tonumber(time[1]) * 1000000 + tonumber(time[2]))

local function stored_etag(key)
  local header = call('GETRANGE', key, 0, 15)
  if header == '' then return '' end
  local tag, expires = unpack_fields('<i8i8', header)
  if expires ~= 0 and expires <= now then return '' end
  return string.format('%.0f', tag)
end

-- Decide: what each key carries once the operations before have been done, and which are refused.
local carried, refused, go = {}, {}, {}
local etag = latest
for i = 1, #KEYS - 5 do
  local at = 4 + (i - 1) * FIELDS
  local name, what, wanted = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  local current = carried[name] or stored_etag(KEYS[5 + i])
  if (wanted ~= '' and wanted ~= current) or (wanted == '' and what == 'f' and current ~= '') then
    refused[#refused + 1] = i - 1
    refused[#refused + 1] = current
    if mode ~= 'each' then return refused end
  else
    go[#go + 1] = i
    if what == 'd' then
      carried[name] = ''
    else
      etag = etag + 1
      carried[name] = string.format('%.0f', etag)
    end
  end
end
if mode == 'check' then return refused end

-- Write.
etag = latest
for _, i in ipairs(go) do
  local at, key = 4 + (i - 1) * FIELDS, KEYS[5 + i]
  local name, expires = ARGV[at], ARGV[at + 3]
  if ARGV[at + 1] == 'd' then
    call('UNLINK', key)
    call('ZREM', NAMES, name)
    call('ZREM', EXPIRY, name)
  else
    etag = etag + 1
    call('SET', key, pack('<i8i8', etag, tonumber(expires)) .. ARGV[at + 5])
    call('ZADD', NAMES, 0, name)
    if expires == '0' then
      call('ZREM', EXPIRY, name)
    else
      call('ZADD', EXPIRY, expires, name)
      call('PEXPIRE', key, ARGV[at + 4])
    end
  end
end
call('HSET', META, 'etag', string.format('%.0f', etag))
return answer(request, DONE, OLDER, refused)

--@ remove
-- KEYS: names, expiry, done, older done, then the keys. ARGV: request, expired until ('' for whatever they carry), then
-- the names. Returns how many went.
local NAMES, EXPIRY, DONE, OLDER = unpack(KEYS, 1, 4)
local until_ms = tonumber(ARGV[2])
local before = answered(ARGV[1], DONE, OLDER)
if before then return before end
local gone = 0
for i = 5, #KEYS do
  local name = ARGV[i - 2]
  local expires = until_ms and tonumber(call('ZSCORE', EXPIRY, name) or until_ms + 1)
  if not until_ms or expires <= until_ms then
    call('UNLINK', KEYS[i])
    call('ZREM', EXPIRY, name)
    gone = gone + call('ZREM', NAMES, name)
  end
end
return answer(ARGV[1], DONE, OLDER, gone)

--@ read
-- KEYS: the keys. ARGV: bytes. Returns the values of the first keys, one at least, as many as have together at most so
-- many bytes; of an absent key nil.
local most, bytes, found = tonumber(ARGV[1]), 0, {}
for i, key in ipairs(KEYS) do
  bytes = bytes + call('STRLEN', key)
  if i > 1 and bytes > most then break end
  found[i] = call('GET', key)
end
return found
