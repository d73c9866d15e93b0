-- The payloads face. The layout stands at the top of redis_payloads.py.
--
-- Listing and chunks change in one step, so that a chunk which a writer stores late, after the payload was removed, is
-- found again.
--@ common
--@ put
-- KEYS: listing, payload. ARGV: name, number, chunk.
redis.call('ZADD', KEYS[1], 0, ARGV[1])
redis.call('HSET', KEYS[2], ARGV[2], ARGV[3])
return 1
--@ remove
-- KEYS: listing, payload. ARGV: name.
redis.call('UNLINK', KEYS[2])
redis.call('ZREM', KEYS[1], ARGV[1])
return 1
