"""What must happen at once in Redis, as Lua scripts. Each is safe to repeat."""

PUBLISH = """
-- KEYS: ids, jobs   ARGV: bound, job id, attempt, data
if redis.call('SISMEMBER', KEYS[1], ARGV[2]) == 1 then return 'known' end
if redis.call('XLEN', KEYS[2]) >= tonumber(ARGV[1]) then return 'full' end
redis.call('SADD', KEYS[1], ARGV[2])
redis.call('XADD', KEYS[2], '*', 'job', ARGV[2], 'attempt', ARGV[3], 'data', ARGV[4])
return 'queued'
"""

FORGET_LOST = """
-- KEYS: ids, jobs, results   ARGV: job ids
-- Forgets those of the ids that nobody has, and says which. A job is in `jobs` until it is
-- acknowledged, so also while it is played or waits for its next try.
if redis.call('XLEN', KEYS[3]) > 0 then return {} end
local there = {}
for _, entry in ipairs(redis.call('XRANGE', KEYS[2], '-', '+')) do there[entry[2][2]] = true end
local lost = {}
for _, job in ipairs(ARGV) do
  if not there[job] then
    redis.call('SREM', KEYS[1], job)
    table.insert(lost, job)
  end
end
return lost
"""

FINISH = """
-- KEYS: jobs, results   ARGV: group, entry, bound, job id, attempt, data
if #redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[2], ARGV[2], 1) == 0 then return 'gone' end
-- The job goes first: a Redis whose memory is full refuses a script what it begins with.
if redis.call('XLEN', KEYS[2]) >= tonumber(ARGV[3]) then return 'full' end
redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
redis.call('XDEL', KEYS[1], ARGV[2])
redis.call('XADD', KEYS[2], '*', 'job', ARGV[4], 'attempt', ARGV[5], 'data', ARGV[6])
return 'finished'
"""

SET_IDLE = """
-- KEYS: jobs   ARGV: group, consumer, entry, idle milliseconds, delivery count or 'same'
-- Changes an entry only while this consumer holds it; says whether it does.
local held = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1, ARGV[2])
if #held == 0 then return 0 end
local deliveries = tonumber(ARGV[5]) or held[1][4]
redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[3],
           'IDLE', ARGV[4], 'RETRYCOUNT', deliveries, 'JUSTID')
return 1
"""

LEASE = """
-- KEYS: lease, all others of the name   ARGV: owner, milliseconds, milliseconds that others outlast
-- Taken or renewed, unless another has it; says who does then.
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return holder end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
for k = 2, #KEYS do redis.call('PEXPIRE', KEYS[k], ARGV[3]) end
return ARGV[1]
"""

RELEASE = """
-- KEYS: lease   ARGV: owner
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
"""

BURY = """
-- KEYS: jobs or results, dead, ids   ARGV: group, consumer, entry, bound, job id, reason, data
-- Only while this consumer holds the entry, which goes first, as in FINISH.
local held = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1, ARGV[2])
if #held == 0 then return 0 end
redis.call('XACK', KEYS[1], ARGV[1], ARGV[3])
redis.call('XDEL', KEYS[1], ARGV[3])
redis.call('SREM', KEYS[3], ARGV[5])
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[4], '*',
           'job', ARGV[5], 'reason', ARGV[6], 'data', ARGV[7])
return 1
"""
