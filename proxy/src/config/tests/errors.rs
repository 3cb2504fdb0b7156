//! Every error of a single key with its exact line and key, and every feature that is not built.

use super::*;

/// A file, with the line of its only error marked `# <-`, the key, and words of the report.
pub(super) struct Case {
    toml: &'static str,
    /// Whether `BASE` follows.
    base: bool,
    key: &'static str,
    words: &'static [&'static str],
}

pub(super) const fn case(toml: &'static str, key: &'static str, words: &'static [&'static str]) -> Case {
    Case { toml, base: true, key, words }
}

pub(super) const fn whole(toml: &'static str, key: &'static str, words: &'static [&'static str]) -> Case {
    Case { toml, base: false, key, words }
}

/// The only error of a case is where it says.
pub(super) fn check(case: &Case) {
    let base = if case.base { BASE } else { "" };
    let text = format!("{}{base}", case.toml);
    let errors = resolve_text(&text).expect_err(case.toml);
    assert_eq!(errors.len(), 1, "{}\n{errors}", case.toml);
    let error = errors.iter().next().expect("one");
    assert_eq!(error.key, case.key, "{errors}");
    let line = case.toml.lines().position(|line| line.contains("# <-")).map_or(1, |index| index + 1);
    assert_eq!(error.line(), line, "{errors}");
    assert_eq!(error.path(), Path::new("etc/test.toml"));
    let shown = error.to_string();
    assert!(shown.starts_with(&format!("etc/test.toml:{line}:")), "{shown}");
    for words in case.words {
        assert!(shown.contains(words), "{shown:?} lacks {words:?}");
    }
    let rendered = errors.render(false);
    for words in [case.key, &error.message] {
        assert!(rendered.replace("\n  │ ", " ").contains(words), "{rendered}");
    }
}

#[test]
fn each_error_names_its_line_and_key() {
    let cases = [
        // Unknown keys and the nearest known one.
        case("[proces] # <-\n", "proces", &["no such key at the top level", "did you mean `process`?"]),
        case(
            "[process]\n\nrun_dri = 1 # <-\n",
            "process.run_dri",
            &["no such key in `process`", "did you mean `run_dir`?", "drain_timeout"],
        ),
        case(
            "[ring]\nzzzzzzzz = 1 # <-\n",
            "ring.zzzzzzzz",
            &["expected one of entries, buffers, buffer_size"],
        ),
        case("[workers]\nbusy_pol = \"0us\" # <-\n", "workers.busy_pol", &["did you mean `busy_poll`?"]),
        // Wrong types.
        case("[process]\nuser = 65534 # <-\n", "process.user", &["is an integer", "a user's name"]),
        case(
            "[process]\ndrain_timeout = 30 # <-\n",
            "process.drain_timeout",
            &["is an integer", "expected a duration", "write \"30s\""],
        ),
        case(
            "[process]\nmax_connections = \"many\" # <-\n",
            "process.max_connections",
            &["is a string", "a whole number, 0 or more"],
        ),
        case("[guard]\ndry_run = \"yes\" # <-\n", "guard.dry_run", &["is a string", "true or false"]),
        case("[guard]\nallow = \"10.0.0.0/8\" # <-\n", "guard.allow", &["is a string", "a list of strings"]),
        case(
            "[guard]\nallow = [\"10.0.0.0/8\",\n  7, # <-\n]\n",
            "guard.allow",
            &["is an integer", "only strings"],
        ),
        case("[steering]\npolicy = [] # <-\n", "steering.policy", &["is a list", "least-loaded"]),
        case("log = 3 # <-\n", "log", &["is an integer", "a table, [log]"]),
        whole(
            "[[listener]]\nname=\"a\"\naddress=\"[::]:1\"\n[upstream] # <-\nname = \"a\"\n",
            "upstream",
            &["is a table", "[[upstream]]"],
        ),
        case("[log]\nlevel = 1979-05-27 # <-\n", "log.level", &["is a date"]),
        // Units and bounds.
        case(
            "[process]\ndrain_timeout = \"30x\" # <-\n",
            "process.drain_timeout",
            &["\"x\" is not a unit of time", "\"250ms\""],
        ),
        case(
            "[process]\ndrain_timeout = \"0s\" # <-\n",
            "process.drain_timeout",
            &["must not be zero", "1ms to 1d"],
        ),
        case(
            "[process]\ndrain_timeout = \"2d\" # <-\n",
            "process.drain_timeout",
            &["out of bounds", "1ms to 1d"],
        ),
        case(
            "[process]\nwatchdog = \"500ms\" # <-\n",
            "process.watchdog",
            &["\"500ms\" is not within 1s to 1d", "\"off\" or a duration"],
        ),
        case(
            "[process]\nwatchdog = 15 # <-\n",
            "process.watchdog",
            &["is an integer", "\"off\" or a duration"],
        ),
        case(
            "[process]\nbuffer_budget = \"512KiB\" # <-\n",
            "process.buffer_budget",
            &["out of bounds", "1MiB to 64GiB"],
        ),
        case("[process]\nmax_connections = -1 # <-\n", "process.max_connections", &["out of bounds"]),
        case("[process]\nrun_dir = \"run\" # <-\n", "process.run_dir", &["not an absolute path"]),
        case(
            "[process]\nrun_dir = \"/\" # <-\n",
            "process.run_dir",
            &["not an absolute path with a last component"],
        ),
        case("[process]\nuser = \"\" # <-\n", "process.user", &["not a user's name"]),
        case("[ring]\nentries = 1000 # <-\n", "ring.entries", &["1000 is not a power of two", "512 or 1024"]),
        case("[ring]\nbuffers = 65536 # <-\n", "ring.buffers", &["out of bounds", "16 to 32768"]),
        case(
            "[ring]\nbuffer_size = \"5KiB\" # <-\n",
            "ring.buffer_size",
            &["5KiB is not a power of two", "4KiB or 8KiB"],
        ),
        case(
            "[workers]\ncount = \"all\" # <-\n",
            "workers.count",
            &["\"all\" is unknown", "\"auto\" or a whole number"],
        ),
        case("[workers]\ncount = 0 # <-\n", "workers.count", &["out of bounds", "1 to 128"]),
        case(
            "[workers]\ncount = 3 # <-\ncpus = \"0-1\"\n",
            "workers.count",
            &["3 workers do not fit on 2 CPUs"],
        ),
        case("[workers]\ncpus = \"0-128\" # <-\n", "workers.cpus", &["129 CPUs", "at most 128"]),
        case("[workers]\ncpus = \"3-1\" # <-\n", "workers.cpus", &["runs backwards", "\"2-15,18\""]),
        case(
            "[workers]\nnuma = \"locale\" # <-\n",
            "workers.numa",
            &["\"locale\" is unknown", "did you mean \"local\"?"],
        ),
        case("[workers]\nstuck_after = \"0s\" # <-\n", "workers.stuck_after", &["must not be zero"]),
        case(
            "[steering]\npolicy = \"lest-loaded\" # <-\n",
            "steering.policy",
            &["did you mean \"least-loaded\"?"],
        ),
        case("[log]\nlevel = \"inof\" # <-\n", "log.level", &["did you mean \"info\"?"]),
        case(
            "[log]\naccess = \"\" # <-\n",
            "log.access",
            &["is not a path", "\"off\", \"stdout\" or a file's path"],
        ),
        case("[log]\naccess = \"stderr\" # <-\n", "log.access", &["neither a word", "./stderr"]),
        case(
            "[log]\naccess = true # <-\n",
            "log.access",
            &["is a boolean", "\"off\", \"stdout\" or a file's path"],
        ),
        case("[log]\nformat = \"xml\" # <-\n", "log.format", &["\"json\""]),
        case("[log]\nquery = \"yes\" # <-\n", "log.query", &["is a string", "true or false"]),
        // Guard.
        case(
            "[guard]\nallow = [\"10.0.0.0/33\"] # <-\n",
            "guard.allow",
            &["\"33\" is not a prefix length from 0 to 32"],
        ),
        case(
            "[guard]\ndeny = [\n\"10.0.0.0/8\",\n\"10.1.2.3/8\", # <-\n]\n",
            "guard.deny",
            &["write 10.0.0.0/8 or 10.1.2.3"],
        ),
        case(
            "[guard]\nmode = \"native\" # <-\n",
            "guard.mode",
            &["\"native\" is unknown", "\"auto\" or \"driver\" or \"generic\""],
        ),
        case(
            "[guard]\ninterfaces = [\"a-name-that-is-too-long\"] # <-\n",
            "guard.interfaces",
            &["not an interface's name"],
        ),
        case(
            "[guard]\ninterfaces = [\"lo\", \"lo\"] # <-\n",
            "guard.interfaces",
            &["\"lo\" is listed twice"],
        ),
        case(
            "[guard]\nsyn_rate_per_ip = \"0/s\" # <-\n",
            "guard.syn_rate_per_ip",
            &["lets nothing through", "\"off\" or a rate"],
        ),
        case("[guard]\nsyn_rate_per_ip = 1000 # <-\n", "guard.syn_rate_per_ip", &["is an integer"]),
        case("[guard]\nsyn_burst_per_ip = 0 # <-\n", "guard.syn_burst_per_ip", &["out of bounds"]),
        case("[guard]\nban_for = \"500ms\" # <-\n", "guard.ban_for", &["out of bounds"]),
        case("[guard]\nban_for = 60 # <-\n", "guard.ban_for", &["is an integer"]),
        case("[guard]\nsyn_cookies = \"on\" # <-\n", "guard.syn_cookies", &["always"]),
        case("[guard]\nconnections_per_ip = 65536 # <-\n", "guard.connections_per_ip", &["out of bounds"]),
        case("[guard]\ndeny_file = \"none.txt\" # <-\n", "guard.deny_file", &["none.txt\" cannot be read"]),
        case(
            "[process]\nrun_dir = \"/run/a.b\" # <-\n[guard]\ninterfaces = [\"lo\"]\n",
            "process.run_dir",
            &["dot"],
        ),
        // Listeners.
        whole(
            "[[route]]\nupstream=\"a\"\n[[upstream]]\nname=\"a\"\nendpoints=[\"127.0.0.1:1\"]\n",
            "listener",
            &["at least one [[listener]]"],
        ),
        case("[[listener]] # <-\naddress = \"127.0.0.1:1\"\n", "listener.name", &["is missing"]),
        case("[[listener]] # <-\nname = \"a\"\n", "listener.address", &["is missing", "\"127.0.0.1:8080\""]),
        case("[[listener]] # <-\nname = \"a\"\naddress = []\n", "listener.address", &["is missing"]),
        case(
            "[[listener]]\nname = \"a b\" # <-\naddress = \"127.0.0.1:1\"\n",
            "listener.name",
            &["\"a b\" is not a name"],
        ),
        case(
            "[[listener]]\nname = \"a\"\naddress = \"127.0.0.1\" # <-\n",
            "listener.address",
            &["has no port"],
        ),
        case(
            "[[listener]]\nname = \"a\"\naddress = \"127.0.0.1:0\" # <-\n",
            "listener.address",
            &["has port 0"],
        ),
        case(
            "[[listener]]\nname = \"b\"\naddress = \"0.0.0.0:81\"\n[[listener]]\nname = \"a\"\n\
             address = [\"[::]:81\",\n\"127.0.0.1:81\"] # <-\n",
            "listener.address",
            &["127.0.0.1:81 is covered by 0.0.0.0:81, an address of listener \"b\""],
        ),
        case(
            "[[listener]]\nname = \"a\"\naddress = [\"[::]:81\", \"[::1]:81\"] # <-\n",
            "listener.address",
            &["[::1]:81 is covered by [::]:81, an address of listener \"a\""],
        ),
        case(
            "[[listener]]\nname = \"a\"\naddress = \"127.0.0.1:1\"\nhalf_close = 2 # <-\n",
            "listener.half_close",
            &["is an integer", "\"off\" or a duration"],
        ),
        case(
            "[[listener]]\nname = \"a\"\naddress = \"127.0.0.1:1\"\nhalf_close = \"2d\" # <-\n",
            "listener.half_close",
            &["is more than 1d"],
        ),
        case(
            "[[listener]]\nname = \"a\"\naddress = \"127.0.0.1:1\"\nprotocol = \"tcp\"\nupstream = \"app\"\n\
             half_close = \"2s\" # <-\n",
            "listener.half_close",
            &["has no meaning for protocol = \"tcp\""],
        ),
        // TLS.
        case(
            "[[listener]] # <-\nname = \"a\"\naddress = \"127.0.0.1:1\"\nprotocol = \"https\"\n",
            "listener.certificate",
            &["there is none, and https needs one"],
        ),
        case(
            "[[listener]]\nname = \"a\"\naddress = \"127.0.0.1:1\"\n[[listener.certificate]] # <-\n\
             chain = \"a\"\nkey = \"b\"\n",
            "listener.certificate",
            &["is for protocol = \"https\" alone"],
        ),
        case(
            "[[listener]]\nname = \"a\"\naddress = \"127.0.0.1:1\"\nprotocol = \"tcp\"\nupstream = \"app\"\n\
             [listener.tls] # <-\n",
            "listener.tls",
            &["is for protocol = \"https\" alone"],
        ),
        case(
            "[[listener]]\nname = \"a\"\naddress = \"127.0.0.1:1\"\nprotocol = \"https\"\n\
             certificate = [{ chain = \"a\" }] # <-\n",
            "listener.certificate.key",
            &["is missing", "private key"],
        ),
        case(
            "[[listener]]\nname = \"a\"\naddress = \"127.0.0.1:1\"\nprotocol = \"https\"\n\
             certificate = \"a.pem\" # <-\n",
            "listener.certificate",
            &["is a string", "[[listener.certificate]]"],
        ),
        case(
            "[[listener]]\nname = \"a\"\naddress = \"127.0.0.1:1\"\nupstream = \"app\" # <-\n\
             protocol = \"https\"\n",
            "listener.upstream",
            &["is for protocol = \"tcp\" and \"tls-passthrough\" alone"],
        ),
        case(
            "[[listener]]\nname = \"a\"\naddress = \"127.0.0.1:1\"\nalpn = [] # <-\n",
            "listener.alpn",
            &["is empty"],
        ),
        case(
            "[[listener]]\nname = \"a\"\naddress = \"127.0.0.1:1\"\nalpn = [\"http/2\"] # <-\n",
            "listener.alpn",
            &["\"http/2\" is unknown", "[\"http/1.1\"]"],
        ),
        // TCP listeners and PROXY headers.
        case(
            "[[listener]] # <-\nname = \"a\"\naddress = \"127.0.0.1:1\"\nprotocol = \"tcp\"\n",
            "listener.upstream",
            &["is missing", "the name of an [[upstream]]"],
        ),
        case(
            "[[listener]]\nname = \"a\"\naddress = \"127.0.0.1:1\"\nprotocol = \"tcp\"\n\
             upstream = \"ap\" # <-\n",
            "listener.upstream",
            &["there is no upstream \"ap\"", "did you mean \"app\"?"],
        ),
        case(
            "[[listener]]\nname = \"a\"\naddress = \"127.0.0.1:1\"\nupstream = \"app\" # <-\n",
            "listener.upstream",
            &["\"app\" is for protocol = \"tcp\" and \"tls-passthrough\" alone", "a [[route]] to it"],
        ),
        case(
            "[[listener]]\nname = \"a\"\naddress = \"127.0.0.1:1\"\nprotocol = \"udp\" # <-\n",
            "listener.protocol",
            &["\"udp\" is unknown", "\"http\" or \"https\" or \"tcp\" or \"tls-passthrough\""],
        ),
        case(
            "[[listener]]\nname = \"a\"\naddress = \"127.0.0.1:1\"\nprotocol = \"tcp\"\nupstream = \"app\"\n\
             limits = { headers = 3 } # <-\n",
            "listener.limits",
            &["has no meaning for protocol = \"tcp\""],
        ),
        case(
            "[[listener]]\nname = \"a\"\naddress = \"127.0.0.1:1\"\nprotocol = \"tcp\"\nupstream = \"app\"\n\
             defer_accept = true # <-\n",
            "listener.defer_accept",
            &["has no meaning for protocol = \"tcp\"", "a server that speaks first"],
        ),
        case(
            "[[listener]]\nname = \"a\"\naddress = \"127.0.0.1:1\"\nprotocol = \"tcp\"\nupstream = \"app\"\n\
             timeouts.keep_alive = \"3s\" # <-\n",
            "listener.timeouts.keep_alive",
            &["has no meaning for protocol = \"tcp\"", "send and tunnel_idle"],
        ),
        case(
            "[[listener]]\nname = \"a\"\naddress = \"127.0.0.1:1\"\nprotocol = \"tcp\"\nupstream = \"app\"\n\
             trusted_proxies = [\"10.0.0.1\"] # <-\n",
            "listener.trusted_proxies",
            &["has no effect without proxy_protocol"],
        ),
        case(
            "[[listener]]\nname = \"a\"\naddress = \"127.0.0.1:1\"\nproxy_protocol = \"accept\" # <-\n",
            "listener.proxy_protocol",
            &["nobody is trusted", "trusted_proxies with the proxies before us"],
        ),
        case(
            "[[listener]]\nname = \"a\"\naddress = \"127.0.0.1:1\"\nproxy_protocol = \"v2\" # <-\n",
            "listener.proxy_protocol",
            &["\"v2\" is unknown", "\"off\" or \"accept\""],
        ),
        case(
            "[[listener]]\nname = \"a\"\naddress = \"127.0.0.1:1\"\ntimeouts.tunnel_idle = \"0s\" # <-\n",
            "listener.timeouts.tunnel_idle",
            &["must not be zero"],
        ),
        case(
            "[[upstream]]\nname = \"b\"\nendpoints = [\"127.0.0.1:1\"]\nsend_proxy = \"v2\" # <-\n",
            "upstream.send_proxy",
            &["is a string", "true or false"],
        ),
        case(
            "[[listener]]\nname = \"a\"\naddress = \"localhost:80\" # <-\n",
            "listener.address",
            &["not an address with a port"],
        ),
        whole(
            "[[listener]]\nname=\"a\"\naddress=\"[::]:80\"\n[[listener]]\nname=\"b\"\n\
             address=\"[::]:80\" # <-\n",
            "listener.address",
            &["listener \"a\" already"],
        ),
        case(
            "[[listener]]\nname=\"a\"\naddress=[\"127.0.0.1:80\",\n\"[::ffff:127.0.0.1]:80\"] # <-\n",
            "listener.address",
            &["127.0.0.1:80 is an address of listener \"a\""],
        ),
        whole(
            "[[listener]]\nname=\"a\"\naddress=\"[::]:80\"\n[[listener]]\nname=\"a\" # <-\n\
             address=\"[::]:81\"\n",
            "listener.name",
            &["\"a\" is taken"],
        ),
        case(
            "[[listener]]\nname=\"a\"\naddress=\"0.0.0.0:9901\" # <-\n",
            "listener.address",
            &["taken by admin.address, 127.0.0.1:9901"],
        ),
        case("[admin]\naddress = \"127.0.0.1:8080\" # <-\n", "admin.address", &["taken by listener \"web\""]),
        case("[admin]\naddress = \"9901\" # <-\n", "admin.address", &["not an address with a port"]),
        case("[admin]\naddress = 9901 # <-\n", "admin.address", &["is an integer"]),
        case(
            "[[listener]]\nname=\"a\"\naddress=\"[::]:1\"\nbacklog = 0 # <-\n",
            "listener.backlog",
            &["out of bounds"],
        ),
        case(
            "[[listener]]\nname=\"a\"\naddress=\"[::]:1\"\ntrusted_proxies = [\"x\"] # <-\n",
            "listener.trusted_proxies",
            &["\"x\" is not an address"],
        ),
        case(
            "[[listener]]\nname=\"a\"\naddress=\"[::]:1\"\n[listener.timeouts]\nsend = \"0s\" # <-\n",
            "listener.timeouts.send",
            &["must not be zero"],
        ),
        case(
            "[[listener]]\nname=\"a\"\naddress=\"[::]:1\"\ntimeouts.min_rate = \"100B\" # <-\n",
            "listener.timeouts.min_rate",
            &["\"100B\" is not per second", "\"100B/s\"", "\"off\""],
        ),
        case(
            "[[listener]]\nname=\"a\"\naddress=\"[::]:1\"\ntimeouts.min_rate = \"5GiB/s\" # <-\n",
            "listener.timeouts.min_rate",
            &["\"5GiB/s\" is too high"],
        ),
        case(
            "[[listener]]\nname=\"a\"\naddress=\"[::]:1\"\ntimeouts.sent = \"1s\" # <-\n",
            "listener.timeouts.sent",
            &["did you mean `send`?"],
        ),
        case(
            "[[listener]]\nname=\"a\"\naddress=\"[::]:1\"\nlimits = { header_bytes = \"10MiB\" } # <-\n",
            "listener.limits.header_bytes",
            &["1KiB to 1MiB"],
        ),
        case(
            "[[listener]]\nname=\"a\"\naddress=\"[::]:1\"\nlimits = { uri_bytes = \"64KiB\" } # <-\n",
            "listener.limits.uri_bytes",
            &["at most header_bytes, 32KiB"],
        ),
        case(
            "[[listener]]\nname=\"a\"\naddress=\"[::]:1\"\nlimits = { header_bytes = \"4KiB\" } # <-\n",
            "listener.limits.header_bytes",
            &["cannot be longer than the head"],
        ),
        case(
            "[[listener]]\nname=\"a\"\naddress=\"[::]:1\"\nlimits = { headers = 0 } # <-\n",
            "listener.limits.headers",
            &["out of bounds"],
        ),
        // Upstreams.
        case("[[upstream]] # <-\nname = \"u\"\n", "upstream.endpoints", &["is missing"]),
        case(
            "[[upstream]] # <-\nname = \"u\"\nendpoints = []\n",
            "upstream.endpoints",
            &["at least one address"],
        ),
        whole(
            "[[listener]]
name=\"a\"
address=\"[::]:1\"
[[upstream]]
name=\"u\"
endpoints=[\"127.0.0.1:2\"]
\
             [[upstream]]
name=\"u\" # <-
endpoints=[\"127.0.0.1:2\"]
",
            "upstream.name",
            &["\"u\" is taken already"],
        ),
        case(
            "[[upstream]]\nname = \"u\"\nendpoints = [\"10.0.0.1\"] # <-\n",
            "upstream.endpoints",
            &["has no port"],
        ),
        case(
            "[[upstream]]\nname = \"u\"\nendpoints = [\"app.internal:80\"] # <-\n",
            "upstream.endpoints",
            &["host name, which is not built yet"],
        ),
        case(
            "[[upstream]]\nname = \"u\"\nendpoints = [\"10.0.0.1:1\",\n\"10.0.0.1:1\"] # <-\n",
            "upstream.endpoints",
            &["listed twice"],
        ),
        case(
            "[[upstream]]\nname = \"u\"\nendpoints = [{ address = \"10.0.0.1:1\", weight = 257 }] # <-\n",
            "upstream.endpoints.weight",
            &["a whole number from 0 to 256"],
        ),
        case(
            "[[upstream]]\nname = \"u\"\nendpoints = [{ address = \"10.0.0.1:1\", weight = 0 }] # <-\n",
            "upstream.endpoints",
            &["no endpoint that takes requests", "a weight of 1 or more"],
        ),
        case(
            "[[upstream]]\nname = \"u\"\nendpoints = [{ adress = \"10.0.0.1:1\", address = \"10.0.0.2:1\" }] \
             # <-\n",
            "upstream.endpoints.adress",
            &["did you mean `address`?"],
        ),
        case(
            "[[upstream]]\nname = \"u\"\nendpoints = [{}] # <-\n",
            "upstream.endpoints.address",
            &["is missing"],
        ),
        case("[[upstream]]\nname = \"u\"\nendpoints = [7] # <-\n", "upstream.endpoints", &["is an integer"]),
        case(
            "[[upstream]]\nname = \"u\"\nendpoints = \"10.0.0.1:1\" # <-\n",
            "upstream.endpoints",
            &["is a string"],
        ),
        case(
            "[[upstream]]\nname=\"u\"\nendpoints=[\"10.0.0.1:1\"]\nretry.attempts = 0 # <-\n",
            "upstream.retry.attempts",
            &["1 to 16"],
        ),
        case(
            "[[upstream]]\nname=\"u\"\nendpoints=[\"10.0.0.1:1\"]\npool.idle_timeout = \"0s\" # <-\n",
            "upstream.pool.idle_timeout",
            &["must not be zero"],
        ),
        case(
            "[[upstream]]\nname=\"u\"\nendpoints=[\"10.0.0.1:1\"]\nconnect_timeout = \"1h\" # <-\n",
            "upstream.connect_timeout",
            &["1ms to 5m"],
        ),
        case(
            "[[upstream]]\nname=\"u\"\nendpoints=[\"10.0.0.1:1\"]\nsource = [\"lo\"] # <-\n",
            "upstream.source",
            &["\"lo\" is not an IP address", "192.0.2.10"],
        ),
        case(
            "[[upstream]]\nname=\"u\"\nendpoints=[\"10.0.0.1:1\"]\nsource = [\"0.0.0.0\"] # <-\n",
            "upstream.source",
            &["\"0.0.0.0\" is no address to connect from"],
        ),
        case(
            "[[upstream]]\nname=\"u\"\nendpoints=[\"10.0.0.1:1\"]\n\
             source = [\"::ffff:192.0.2.1\", \"192.0.2.1\"] # <-\n",
            "upstream.source",
            &["\"192.0.2.1\" is listed twice"],
        ),
        case(
            "[[upstream]]\nname=\"u\"\nendpoints=[\"10.0.0.1:1\"]\nsource = [\"2001:db8::1\"] # <-\n",
            "upstream.source",
            &["no address from which 10.0.0.1:1 can be reached", "IPv4 or IPv6"],
        ),
        case(
            "[[upstream]]\nname=\"u\"\nendpoints=[\"10.0.0.1:1\"]\n[upstream.tls] # <-\n",
            "upstream.tls",
            &["has no ca, and the system's roots cannot be used: they were not passed on", "ca-certificates"],
        ),
        case(
            "[[upstream]]\nname=\"u\"\nendpoints=[\"10.0.0.1:1\"]\n\
             tls = { verify = false, server_name = \"-\" } # <-\n",
            "upstream.tls.server_name",
            &["\"-\" is not a host name"],
        ),
        case(
            "[[upstream]]\nname=\"u\"\nendpoints=[\"10.0.0.1:1\"]\n[upstream.tls]\nverify = false\n\
             ca = \"ca.pem\" # <-\n",
            "upstream.tls.ca",
            &["has no effect beside verify = false"],
        ),
        case(
            "[[upstream]]\nname=\"u\"\nendpoints=[\"10.0.0.1:1\"]\n[upstream.tls] # <-\nverify = false\n\
             certificate = \"c.pem\"\n",
            "upstream.tls.key",
            &["is missing"],
        ),
        case(
            "[[upstream]]\nname=\"u\"\nendpoints=[\"10.0.0.1:1\"]\n[upstream.tls] # <-\nverify = false\n\
             key = \"k.pem\"\n",
            "upstream.tls.certificate",
            &["is missing"],
        ),
        // Syntax.
        case("[process]\nuser = \"a # <-\n", "", &["invalid basic string"]),
        case("[process]\nuser = \"a\"\nuser = \"b\" # <-\n", "user", &["duplicate key"]),
    ];
    cases.iter().for_each(check);
}

#[test]
fn features_that_are_not_built_say_so() {
    let listener = ["alpn = [\"h2\"]"];
    let route: [&str; 0] = [];
    let upstream = [
        "endpoints_file = \"a\"",
        "balance = \"maglev\"",
        "hash_on = \"uri\"",
        "slow_start = \"1s\"",
        "protocol = \"h2\"",
        "health = {}",
        "pool.max_connections = 1",
        "pool.queue = 1",
        "pool.queue_timeout = \"2s\"",
        "passive.failures = 1",
        "passive.open_for = \"1s\"",
        "passive.outlier = \"on\"",
        "passive.max_ejected = 0.1",
        "retry.on = [\"502\"]",
        "retry.per_try_timeout = \"1s\"",
        "retry.budget = 0.1",
        "fallback.stale = \"1m\"",
        "fallback.respond = { status = 503 }",
        "fallback.redirect = \"/\"",
    ];
    let top = [("workers", "busy_poll = \"50us\"")];
    let in_table = |table: &'static str, head: &'static str| move |line: &&'static str| (table, head, *line);
    let cases = listener
        .iter()
        .map(in_table("listener", "[[listener]]\nname = \"x\"\naddress = \"[::]:1\"\n"))
        .chain(route.iter().map(in_table("route", "[[route]]\nupstream = \"app\"\npath_prefix = \"/x\"\n")))
        .chain(
            upstream
                .iter()
                .map(in_table("upstream", "[[upstream]]\nname = \"x\"\nendpoints = [\"10.0.0.1:1\"]\n")),
        )
        .map(|(table, head, line)| (table, head.to_owned(), line))
        .chain(top.iter().map(|(table, line)| (*table, format!("[{table}]\n"), *line)));
    for (table, head, line) in cases {
        let text = format!("{head}{line}\n{BASE}");
        let errors = resolve_text(&text).expect_err(line);
        assert_eq!(errors.len(), 1, "{errors}");
        let error = errors.iter().next().expect("one");
        let written = format!("{table}.{}", line.split(" =").next().expect("a key"));
        assert!(written.starts_with(&error.key) && error.key.len() > table.len(), "{errors}");
        assert_eq!(error.line(), head.lines().count() + 1, "{errors}");
        assert!(error.message.contains("is not built yet"), "{errors}");
    }
}
