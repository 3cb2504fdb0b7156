-- What wrk does for `cargo xtask bench`: with ROUTES=n in its environment it asks for /service-01/ to /service-n/ in turn, else always for
-- the same path; at the end one line of JSON.

local routes = tonumber(os.getenv("ROUTES") or "0")
if routes > 0 then
    local requests, at = {}, 0
    init = function()
        for route = 1, routes do
            requests[route] = wrk.format(nil, string.format("/service-%02d/", route))
        end
    end
    request = function()
        at = at % routes + 1
        return requests[at]
    end
end

done = function(summary)
    local errors = summary.errors
    io.write(string.format(
        '\n{"requests":%d,"connect":%d,"read":%d,"write":%d,"status":%d,"timeout":%d}\n',
        summary.requests, errors.connect, errors.read, errors.write, errors.status, errors.timeout))
end
