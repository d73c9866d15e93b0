-- wrk: requests for keys chosen at random, and one line of JSON at the end.
-- Arguments: method, path with %d for the key's number, number of keys, body ("" for none).
local counter = 0
local requests = {}

function setup(thread)
  thread:set("number", counter)
  counter = counter + 1
end

function init(args)
  local method, path, keys, body = args[1], args[2], tonumber(args[3]), args[4]
  if body == "" then body = nil else wrk.headers["content-type"] = "application/json" end
  for key = 1, keys do
    requests[key] = wrk.format(method, (path:gsub("%%d", tostring(key - 1))), nil, body)
  end
  math.randomseed(os.time() + 7919 * number)
end

function request()
  return requests[math.random(#requests)]
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    'RESULT {"requests": %d, "seconds": %.6f, "failed": %d, "p50_ms": %.4f, "p99_ms": %.4f}\n',
    summary.requests, summary.duration / 1e6,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout,
    latency:percentile(50) / 1000, latency:percentile(99) / 1000))
end
