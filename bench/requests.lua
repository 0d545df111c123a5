-- Requests of distinct users for wrk: `wrk … -s bench/requests.lua URL -- TOKENS METHOD [BODY [PATHS]]`.
-- TOKENS holds one access token a line; PATHS, where given, the path for the token of the same line.
local tokens, paths, method, body, at = {}, nil, 'GET', '', 0

local function lines(name)
  local all = {}
  for line in io.lines(name) do all[#all + 1] = line end
  return all
end

function init(args)
  tokens = lines(args[1])
  method = args[2] or 'GET'
  body = args[3] or ''
  if args[4] then paths = lines(args[4]) end
end

function request()
  at = at % #tokens + 1
  local head = method .. ' ' .. (paths and paths[at] or wrk.path) .. ' HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer ' .. tokens[at]
  if body ~= '' then
    head = head .. '\r\nContent-Type: application/json\r\nIdempotency-Key: bench-' .. at
  end
  if method == 'POST' then
    return head .. '\r\nContent-Length: ' .. #body .. '\r\n\r\n' .. body
  end
  return head .. '\r\n\r\n'
end

function done(summary, latency, requests)
  io.write(string.format('RESULT %d %d %d %d %d %d\n', summary.requests, summary.duration,
    latency:percentile(50), latency:percentile(99),
    summary.errors.status, summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout))
end
