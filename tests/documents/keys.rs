//! `docs/configure.md`: a row for each key that the configuration knows. A row's last cell is written by
//! hand. The code gives the others. The errors that wrong values cause give the values. `config/proxy.toml`
//! gives the default, and a reload with a changed key gives the reload cell.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use proxy::config::changes::Changes;
use proxy::config::{self, Diagnostics, Files, units};

use crate::page;

const PAGE: &str = "docs/configure.md";
const UNKNOWN: &str = "zzzzzzzzzzzzzzzzzzzzzzzzzz";
/// A string that is neither a name nor an address nor a path.
const STRANGE: &str = "\"\\u0000 /\"";

/// Keys with their values.
type Lines = &'static [(&'static str, &'static str)];

/// Tables that have a header: their name, their header, and the lines that they need.
const TABLES: &[(&str, &str, Lines)] = &[
    ("process", "[process]", &[]),
    ("workers", "[workers]", &[]),
    ("ring", "[ring]", &[]),
    ("steering", "[steering]", &[]),
    ("guard", "[guard]", &[]),
    ("listener", "[[listener]]", &[("name", "\"web\""), ("address", "\"127.0.0.1:8080\"")]),
    ("listener.timeouts", "[listener.timeouts]", &[]),
    ("listener.limits", "[listener.limits]", &[]),
    (
        "(another listener)",
        "[[listener]]",
        &[("name", "\"secure\""), ("address", "\"127.0.0.1:8443\""), ("protocol", "\"https\"")],
    ),
    ("listener.certificate", "[[listener.certificate]]", &[("chain", "\"own.pem\""), ("key", "\"own.pem\"")]),
    ("listener.tls", "[listener.tls]", &[]),
    ("route", "[[route]]", &[("upstream", "\"app\"")]),
    ("upstream", "[[upstream]]", &[("name", "\"app\""), ("endpoints", "[\"127.0.0.1:9000\"]")]),
    ("upstream.tls", "[upstream.tls]", &[]),
    ("upstream.pool", "[upstream.pool]", &[]),
    ("upstream.passive", "[upstream.passive]", &[]),
    ("upstream.retry", "[upstream.retry]", &[]),
    ("upstream.fallback", "[upstream.fallback]", &[]),
    ("admin", "[admin]", &[]),
    ("log", "[log]", &[]),
];

/// Tables that are values of a key: the brackets around them, and the keys that they need.
const INLINE: &[(&str, [&str; 2], Lines)] = &[
    ("route.redirect", ["{ ", " }"], &[("to", "\"/x\"")]),
    ("route.respond", ["{ ", " }"], &[]),
    ("route.request_headers", ["{ ", " }"], &[]),
    ("route.response_headers", ["{ ", " }"], &[]),
    ("upstream.endpoints", ["[{ ", " }]"], &[("address", "\"127.0.0.1:9000\"")]),
];

/// A second valid value for each key that has neither a unit nor a list of words.
const OTHER: &[(&str, &str)] = &[
    ("process.run_dir", "\"/run/other\""),
    ("process.user", "\"daemon\""),
    ("workers.count", "2"),
    ("workers.cpus", "\"0\""),
    ("workers.control_cpus", "\"0\""),
    ("guard.interfaces", "[\"lo\"]"),
    ("guard.allow", "[\"192.0.2.0/24\"]"),
    ("guard.deny", "[\"192.0.2.0/24\"]"),
    ("guard.deny_file", "\"deny.txt\""),
    ("guard.syn_rate_per_ip", "\"5/s\""),
    ("guard.syn_cookies_rate", "\"5/s\""),
    ("listener.name", "\"other\""),
    ("listener.address", "\"127.0.0.1:8081\""),
    ("listener.trusted_proxies", "[\"192.0.2.0/24\"]"),
    ("listener.timeouts.min_rate", "\"off\""),
    ("listener.tls.client_ca", "\"own.pem\""),
    ("listener.tls.client_crl", "[\"own.crl\"]"),
    ("listener.tls.ticket_keys", "[\"ticket.key\"]"),
    ("route.host", "\"example.com\""),
    ("route.path_prefix", "\"/api\""),
    ("route.path", "\"/exact\""),
    ("route.listener", "[\"web\"]"),
    ("route.request_headers", "{ remove = [\"Via\"] }"),
    ("route.response_headers", "{ remove = [\"Via\"] }"),
    ("upstream.name", "\"app\"\nconnect_timeout = \"7s\""),
    ("upstream.endpoints", "[\"127.0.0.1:9001\"]"),
    ("upstream.source", "[\"127.0.0.2\"]"),
    ("upstream.tls.server_name", "\"app.example\""),
    ("upstream.tls.ca", "\"own.pem\""),
    ("upstream.retry.on", "[]"),
    ("admin.address", "\"127.0.0.1:9902\""),
    ("log.access", "\"stdout\""),
];

/// The values of keys whose errors do not describe them.
const VALUES: &[(&str, &str)] = &[
    ("listener.upstream", "name of an upstream"),
    ("listener.alpn", "list: `\"http/1.1\"`"),
    ("route.upstream", "name of an upstream"),
    ("route.listener", "name of a listener; or a list"),
    ("upstream.endpoints", "list of addresses, or of tables"),
    ("upstream.endpoints.address", "address with a port"),
    ("upstream.source", "list of IP addresses"),
    ("upstream.retry.on", "list of `\"connect-failure\"`, `\"reset-before-response\"`"),
];

/// The lines of a table, with one line replaced or added.
fn lines(needed: &[(&str, &str)], replaced: Option<(&str, &str)>) -> Vec<String> {
    let key = replaced.map(|(key, _)| key);
    let needed = needed.iter().filter(|(name, _)| Some(*name) != key);
    needed.chain(&replaced).map(|(key, value)| format!("{key} = {value}")).collect()
}

/// A whole configuration in which this key of this table has this value.
fn document(table: &str, key: &str, value: &str) -> String {
    if let Some((_, [open, close], needed)) = INLINE.iter().find(|(name, ..)| *name == table) {
        let (outer, name) = table.split_once('.').unwrap();
        return document(
            outer,
            name,
            &format!("{open}{}{close}", lines(needed, Some((key, value))).join(", ")),
        );
    }
    let mut text = String::new();
    for (name, header, needed) in TABLES {
        let replaced = (*name == table).then_some((key, value));
        let mut lines = lines(needed, replaced);
        if *name == "route" && matches!(key, "redirect" | "respond") {
            lines.retain(|line| !line.starts_with("upstream"));
        }
        text.push_str(&format!("{header}\n{}\n", lines.join("\n")));
    }
    text
}

/// The files that a configuration refers to.
struct Referred(Vec<(PathBuf, Vec<u8>)>);

impl Referred {
    fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
        let pem = params.self_signed(&key).unwrap().pem() + &key.serialize_pem();
        let files = [
            ("etc/own.pem", pem.clone().into_bytes()),
            ("etc/deny.txt", b"192.0.2.0/24".to_vec()),
            ("etc/ticket.key", vec![7; 80]),
            ("(the system's roots)", pem.into_bytes()),
        ];
        Self(files.map(|(path, bytes)| (path.into(), bytes)).to_vec())
    }

    fn resolve(&self, text: &str) -> Result<config::model::Config, Diagnostics> {
        let main = (PathBuf::from("etc/test.toml"), text.as_bytes().to_vec());
        let files: Vec<_> =
            [main].iter().chain(&self.0).map(|(path, bytes)| (path.clone(), bytes.clone().into())).collect();
        let files: &Files = &files;
        config::resolve(files)
    }

    /// The error that a value causes for its own key: the message, and the expected form.
    fn complaint(&self, table: &str, key: &str, value: &str) -> Option<(String, String)> {
        let errors = self.resolve(&document(table, key, value)).err()?;
        let name = format!("{table}.{key}");
        let own = errors.iter().find(|error| error.key == name && !error.message.starts_with("is beside"))?;
        Some((own.message.clone(), own.expected.clone().unwrap_or_default()))
    }
}

/// The state of a key according to the code.
#[derive(Debug)]
enum Key {
    /// The key is built and takes these values.
    Built(String),
    NotBuilt,
    /// The key is a table with a header.
    Table,
}

/// Finds the state of a key by the errors that wrong values cause.
fn ask(referred: &Referred, table: &str, key: &str) -> Key {
    let name = format!("{table}.{key}");
    if TABLES.iter().any(|(table, ..)| *table == name) {
        return Key::Table;
    }
    // Booleans are tried with `7`, since `true` may conflict with another key and cause another error.
    if referred.complaint(table, key, "7").is_some_and(|(_, form)| form == "true or false") {
        return Key::Built("`true`, `false`".to_owned());
    }
    let complaint = referred.complaint(table, key, "true");
    let (message, form) = complaint.unwrap_or_else(|| panic!("{name} takes anything"));
    if message == "is not built yet" {
        return Key::NotBuilt;
    }
    let bounds = |probes: &[&str]| {
        let said = probes.iter().find_map(|probe| referred.complaint(table, key, probe));
        said.map_or_else(String::new, |(_, bounds)| format!(", {}", bounds.replace("0B ", "0 ")))
    };
    if form == units::DURATION_FORM {
        return Key::Built(format!("duration{}", bounds(&["\"0s\"", "\"200000d\""])));
    }
    if form == units::SIZE_FORM {
        return Key::Built(format!("size{}", bounds(&["\"0B\"", "\"1000000TiB\""])));
    }
    if form.starts_with("a table, [") {
        return Key::Built("table".to_owned());
    }
    let words: Vec<&str> = form.split(" or ").collect();
    if words.iter().all(|word| word.starts_with('"') && word.ends_with('"')) {
        return Key::Built(words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", "));
    }
    if let Some((_, values)) = VALUES.iter().find(|(known, _)| *known == name) {
        return Key::Built((*values).to_owned());
    }
    // An error about a strange string describes the valid strings.
    let values = match referred.complaint(table, key, STRANGE) {
        Some((_, inner)) if form == "a string" && !inner.is_empty() => inner,
        _ if form == "a string" => form,
        _ => match referred.complaint(table, key, &format!("[{STRANGE}]")) {
            Some((_, inner)) if !inner.is_empty() && form.ends_with("a list of strings") => {
                let each = without_article(&inner);
                if form == "a list of strings" {
                    format!("list: {each}")
                } else {
                    format!("{each}; or a list")
                }
            }
            _ => form,
        },
    };
    Key::Built(with_code(without_article(&values)))
}

/// Marks quoted strings as code.
fn with_code(text: &str) -> String {
    let mut out = String::new();
    for (index, part) in text.split('"').enumerate() {
        let quoted = format!("`\"{part}\"`");
        out.push_str(if index % 2 == 1 { &quoted } else { part });
    }
    out
}

fn without_article(form: &str) -> &str {
    form.strip_prefix("a ").or_else(|| form.strip_prefix("an ")).unwrap_or(form)
}

/// Every key of a table, from the error about an unknown key.
fn known(referred: &Referred, table: &str) -> Vec<String> {
    let errors = referred.resolve(&document(table, UNKNOWN, "1")).expect_err("an unknown key");
    let error = errors.iter().find(|error| error.key.ends_with(UNKNOWN)).expect("its report");
    let list = error.expected.as_deref().and_then(|list| list.strip_prefix("one of ")).expect("a list");
    list.split(", ").map(str::to_owned).collect()
}

/// The default values, which `config/proxy.toml` shows, by dotted key.
fn defaults() -> BTreeMap<String, String> {
    let text = page::read("config/proxy.toml");
    let mut table = String::new();
    let mut found = BTreeMap::new();
    for line in text.lines() {
        let line = line.strip_prefix("# ").unwrap_or(line);
        let (code, comment) = split_comment(line);
        if code.starts_with('[') {
            table = code.trim_matches(['[', ']']).to_owned();
        } else if let Some((key, value)) = code.split_once(" = ")
            && key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
            && !comment.contains("example")
        {
            found.insert(format!("{table}.{key}"), value.to_owned());
        }
    }
    found
}

fn split_comment(line: &str) -> (&str, &str) {
    let mut is_quoted = false;
    for (at, letter) in line.char_indices() {
        match letter {
            '"' => is_quoted = !is_quoted,
            '#' if !is_quoted => return (line[..at].trim(), &line[at..]),
            _ => {}
        }
    }
    (line.trim(), "")
}

/// Whether a reload applies a change of the key. `None`: the test knows no other value for it.
fn reload(referred: &Referred, name: &str, values: &str, default: Option<&str>) -> Option<&'static str> {
    let (table, key) = name.rsplit_once('.')?;
    let default = default.map(|default| default.trim_matches('"'));
    let known = OTHER.iter().find(|(other, _)| *other == name).map(|(_, value)| (*value).to_owned());
    let other = known.or_else(|| match default? {
        "true" => Some("false".to_owned()),
        "false" => Some("true".to_owned()),
        "0" if values.starts_with("size") => Some("\"1MiB\"".to_owned()),
        number if number.parse::<u64>().is_ok() => Some((number.parse::<u64>().ok()?.max(8) * 2).to_string()),
        unit if values.starts_with("duration") => {
            Some(format!("\"{}us\"", 2 * units::duration(unit).ok()?.as_micros()))
        }
        unit if values.starts_with("size") => Some(format!("\"{}B\"", 2 * units::size(unit).ok()?)),
        word if values.starts_with('`') => values
            .split(", ")
            .find(|value| value.trim_matches(['`', '"']) != word)
            .map(|value| value.replace('`', "")),
        _ => None,
    })?;
    let before = referred.resolve(&document("", "", "")).map_err(|errors| errors.to_string()).expect("valid");
    let after = referred.resolve(&document(table, key, &other)).ok()?;
    let changes = Changes::between(&before, &after);
    match (changes.fixed.is_empty(), changes.live.is_empty()) {
        (true, true) => None,
        (is_live, _) => Some(if is_live { "live" } else { "restart" }),
    }
}

/// The tables whose keys have rows.
fn tables() -> impl Iterator<Item = &'static str> {
    let with_header = TABLES.iter().map(|(table, ..)| *table).filter(|table| !table.starts_with('('));
    with_header.chain(INLINE.iter().map(|(table, ..)| *table))
}

/// The values of every key that is built, by dotted key, and the names of the keys that are not.
fn keys(referred: &Referred) -> (BTreeMap<String, String>, Vec<String>) {
    let (mut built, mut not_built) = (BTreeMap::new(), Vec::new());
    for table in tables() {
        for key in known(referred, table) {
            let name = format!("{table}.{key}");
            match ask(referred, table, &key) {
                Key::Built(values) => drop(built.insert(name, values)),
                Key::NotBuilt => not_built.push(name),
                Key::Table => {}
            }
        }
    }
    (built, not_built)
}

/// A key's row with its generated cells filled in.
fn row(referred: &Referred, name: &str, values: &str, default: Option<&str>, line: &str) -> String {
    let mut row = page::cells(line);
    assert_eq!(row.len(), 5, "five cells: {line}");
    values.clone_into(&mut row[1]);
    if let Some(default) = default {
        row[2] = format!("`{default}`");
    }
    assert!(!row[2].is_empty(), "{PAGE}: say what {name} is by default, or that it is required");
    if let Some(reload) = reload(referred, name, values, default) {
        reload.clone_into(&mut row[3]);
    }
    assert!(matches!(&*row[3], "live" | "restart"), "{PAGE}: say whether a reload takes {name}");
    assert!(!row[4].is_empty(), "{PAGE}: say what {name} does");
    format!("| {} |", row.join(" | "))
}

#[test]
fn configure_md_has_a_row_for_every_key() {
    let referred = Referred::new();
    let (built, not_built) = keys(&referred);
    let defaults = defaults();
    let mut fresh = String::new();
    let mut table = String::new();
    let mut seen = BTreeSet::new();
    for line in page::read(PAGE).lines() {
        if let Some(heading) = line.strip_prefix('#').map(|line| line.trim_start_matches('#').trim()) {
            table = heading.trim_matches('`').trim_matches(['[', ']']).to_owned();
        }
        if line.starts_with("| `") && tables().any(|known| known == table) {
            let name = format!("{table}.{}", page::cells(line)[0].trim_matches('`'));
            let values = built.get(&name).unwrap_or_else(|| panic!("{PAGE}: there is no key {name}"));
            let default = defaults.get(&name).map(String::as_str);
            fresh.push_str(&row(&referred, &name, values, default, line));
            assert!(seen.insert(name), "{PAGE}: two rows: {line}");
        } else {
            fresh.push_str(line);
        }
        fresh.push('\n');
    }
    let missing: Vec<&String> = built.keys().filter(|name| !seen.contains(*name)).collect();
    assert!(missing.is_empty(), "{PAGE} lacks rows such as \"| `KEY` | | | | DOES |\" for {missing:?}");
    let list: Vec<String> = not_built.iter().map(|name| format!("- `{name}`\n")).collect();
    page::keep(PAGE, &page::with_block(&fresh, "not built", &list.concat()));
}
