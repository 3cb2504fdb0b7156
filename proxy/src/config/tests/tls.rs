//! TLS: certificates are read beside the main file, and errors in one are reported at the key that names it.

use std::os::unix::fs::PermissionsExt as _;

use super::*;
use crate::listen::Protocol;
use crate::tls::client::Trust;
use crate::tls::server::MinVersion;
use crate::tls::testing::{Authority, Pair, Response, params};

/// A folder with these certificates as `0.pem`, `0.key` and so on, and a main file with a listener that has
/// them.
struct Folder {
    folder: tempfile::TempDir,
    text: String,
}

impl Folder {
    fn new(pairs: &[&Pair], tls: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut text =
            "[[upstream]]\nname = \"app\"\nendpoints = [\"127.0.0.1:9000\"]\n[[route]]\nupstream = \"app\"\n"
                .to_owned();
        text.push_str("[[listener]]\nname = \"web\"\naddress = \"127.0.0.1:8443\"\nprotocol = \"https\"\n");
        for (index, pair) in pairs.iter().enumerate() {
            text.push_str(&format!(
                "[[listener.certificate]]\nchain = \"{index}.pem\"\nkey = \"{index}.key\"\n"
            ));
            std::fs::write(folder.path().join(format!("{index}.pem")), &pair.chain).expect("written");
            std::fs::write(folder.path().join(format!("{index}.key")), &pair.key).expect("written");
        }
        text.push_str(tls);
        std::fs::write(folder.path().join("proxy.toml"), &text).expect("written");
        let folder = Self { folder, text };
        (0..pairs.len()).for_each(|index| folder.allow(&format!("{index}.key"), 0o600));
        folder
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        std::fs::write(self.folder.path().join(name), bytes).expect("written");
    }

    fn allow(&self, name: &str, mode: u32) {
        let permissions = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(self.folder.path().join(name), permissions).expect("changed");
    }

    /// The warnings at a day's first moment, without the folder's name.
    fn warnings(&self, (year, month, day): (i32, u8, u8)) -> Vec<String> {
        let now = rcgen::date_time_ymd(year, month, day).unix_timestamp();
        let loaded = load_at(&self.folder.path().join("proxy.toml"), now)
            .map_err(|errors| errors.to_string())
            .expect("sound");
        assert_eq!(resolve(&loaded.files), Ok(loaded.config));
        let warnings = loaded.warnings.to_string();
        warnings
            .replace(&format!("{}/", self.folder.path().display()), "")
            .lines()
            .map(str::to_owned)
            .collect()
    }

    fn load(&self) -> Result<Loaded, Diagnostics> {
        load(&self.folder.path().join("proxy.toml"))
    }

    /// The errors, without the folder's name.
    fn errors(&self) -> Vec<String> {
        let errors = self.load().expect_err("errors").to_string();
        errors.replace(&format!("{}/", self.folder.path().display()), "").lines().map(str::to_owned).collect()
    }

    /// Where a line stands that begins so, from 1.
    fn line(&self, begin: &str) -> usize {
        self.text.lines().position(|line| line.starts_with(begin)).expect("such a line") + 1
    }
}

#[test]
fn certificates_are_read_beside_the_main_file_and_resolved_from_bytes_alike() {
    let authority = Authority::new("CA");
    let (one, other) = (authority.leaf(&["a.example"]), authority.leaf(&["b.example"]));
    let folder = Folder::new(
        &[&one, &other],
        "[listener.tls]\nmin_version = \"1.3\"\nclient_ca = \"ca.pem\"\nhandshake_timeout = \"3s\"\n\
         max_handshakes = 7\nticket_keys = []\nearly_data = false\n",
    );
    folder.write("ca.pem", authority.pem());
    let loaded = folder.load().map_err(|errors| errors.to_string()).expect("sound");
    let listener = &loaded.config.listeners[0];
    assert_eq!(listener.protocol, Protocol::Https);
    let tls = listener.tls.as_ref().expect("its TLS");
    assert_eq!((tls.handshake_timeout, tls.max_handshakes), (Duration::from_secs(3), 7));
    assert_eq!(
        tls.certificates.iter().map(|certificate| certificate.name()).collect::<Vec<_>>(),
        ["a.example", "b.example"]
    );
    assert_eq!(loaded.files.len(), 6);
    assert_eq!(resolve(&loaded.files), Ok(loaded.config.clone()));
    // Another key is another configuration, and nothing of a key is shown.
    let shown = format!("{loaded:?}");
    assert!(!shown.contains(one.key.lines().nth(1).expect("a line")) && shown.contains("0.key"), "{shown}");
    let renewed = authority.leaf(&["a.example"]);
    folder.write("0.pem", &renewed.chain);
    folder.write("0.key", &renewed.key);
    assert_ne!(folder.load().expect("sound").config, loaded.config);
}

#[test]
fn defaults_of_tls_are_those_of_the_interface() {
    let pair = Authority::new("CA").leaf(&["a.example"]);
    let plain = Folder::new(&[&pair], "").load().expect("sound").config;
    let written = "[listener.tls]\nmin_version = \"1.2\"\nclient_ca = \"\"\nsession_tickets = true\n\
        handshake_timeout = \"10s\"\nmax_handshakes = 256\nearly_data = false\n";
    assert_eq!(plain, Folder::new(&[&pair], written).load().expect("sound").config);
    let early = written.replace("true", "false").replace("early_data = false", "early_data = true");
    for changed in
        [written.replace("1.2", "1.3"), written.replace("10s", "9s"), written.replace("true", "false"), early]
    {
        assert_ne!(plain, Folder::new(&[&pair], &changed).load().expect("sound").config, "{changed}");
    }
}

#[test]
fn each_wrong_file_is_reported_at_its_key() {
    let authority = Authority::new("CA");
    let pair = authority.leaf(&["a.example"]);
    let folder = Folder::new(&[&pair, &pair], "[listener.tls]\nclient_ca = \"ca.pem\"\n");
    folder.write("ca.pem", authority.pem());
    assert!(folder.load().is_ok());
    let other = authority.leaf(&["a.example"]).key;
    for (file, bytes, key, words) in [
        ("0.pem", "", "chain", "\"0.pem\" is empty; expected PEM certificates"),
        ("1.pem", &*pair.key, "chain", "\"1.pem\" holds a private key and no certificate"),
        ("0.key", &*pair.chain, "key", "\"0.key\" holds a certificate and no private key"),
        ("1.key", &*other, "key", "\"1.key\" does not belong to the certificate"),
        ("ca.pem", "x", "client_ca", "\"ca.pem\" is not PEM"),
    ] {
        let before = std::fs::read(folder.folder.path().join(file)).expect("read");
        folder.write(file, bytes);
        let errors = folder.errors();
        let line = folder.line(&format!("{key} = \"{file}\""));
        let table = if key == "client_ca" { "tls" } else { "certificate" };
        let start = format!("proxy.toml:{line}:{}: error: `listener.{table}.{key}`: {words}", key.len() + 4);
        assert!(errors.len() == 1 && errors[0].starts_with(&start), "{errors:?} is not {start}");
        folder.write(file, before);
    }
    std::fs::remove_file(folder.folder.path().join("1.key")).expect("removed");
    std::fs::remove_file(folder.folder.path().join("0.pem")).expect("removed");
    let errors = folder.errors();
    assert_eq!(errors.len(), 2, "{errors:?}");
    assert!(
        errors[0].contains("`listener.certificate.chain`: \"0.pem\" cannot be read: no such file"),
        "{errors:?}"
    );
    assert!(
        errors[1].contains("`listener.certificate.key`: \"1.key\" cannot be read: no such file"),
        "{errors:?}"
    );
}

#[test]
fn files_of_ticket_keys_are_told_apart_and_have_48_or_80_bytes() {
    let pair = Authority::new("CA").leaf(&["a.example"]);
    let folder = Folder::new(&[&pair], "[listener.tls]\nticket_keys = [\"new\", \"old\"]\n");
    folder.write("new", [1; 80]);
    folder.write("old", [2; 48]);
    let loaded = folder.load().map_err(|errors| errors.to_string()).expect("sound");
    assert_eq!(loaded.config.listeners[0].tls.as_ref().expect("its TLS").settings().ticket_keys.len(), 2);
    assert_eq!(resolve(&loaded.files), Ok(loaded.config.clone()));
    assert!(!format!("{loaded:?}").contains("1, 1, 1"), "nothing of a key is shown");
    folder.write("old", [3; 48]);
    assert_ne!(folder.load().expect("sound").config, loaded.config);
    let line = folder.line("ticket_keys");
    for (bytes, words) in [
        (
            &[0; 79][..],
            "\"old\" has 79 bytes; expected 48 or 80 random bytes, as `openssl rand 80` makes them",
        ),
        (&[], "\"old\" has 0 bytes"),
        (&[1; 48], "\"old\" begins with the same 16 bytes as one before"),
    ] {
        folder.write("old", bytes);
        let errors = folder.errors();
        let start = format!("proxy.toml:{line}:23: error: `listener.tls.ticket_keys`: {words}");
        assert!(errors.len() == 1 && errors[0].starts_with(&start), "{errors:?} is not {start}");
    }
    std::fs::remove_file(folder.folder.path().join("old")).expect("removed");
    assert!(folder.errors()[0].contains("`listener.tls.ticket_keys`: \"old\" cannot be read: no such file"));
}

#[test]
fn ticket_keys_that_cannot_be_say_why() {
    let pair = Authority::new("CA").leaf(&["a.example"]);
    let many = format!("[\"{}\"]", vec!["a"; 17].join("\", \""));
    for (lines, words) in [
        (
            "ticket_keys = [\"new\"]\nsession_tickets = false",
            "has no effect with session_tickets = false; expected session_tickets = true",
        ),
        ("ticket_keys = [\"\"]", "\"\" is not a path; expected paths of files"),
        (&format!("ticket_keys = {many}"), "has 17 files; expected at most 16"),
        ("ticket_keys = \"new\"", "is a string"),
        ("ticket_keys = [1]", "is an integer"),
    ] {
        let folder = Folder::new(&[&pair], &format!("[listener.tls]\n{lines}\n"));
        folder.write("new", [1; 80]);
        let errors = folder.errors();
        let start = format!("proxy.toml:{}:", folder.line("ticket_keys"));
        assert!(
            errors[0].starts_with(&start) && errors[0].contains("`listener.tls.ticket_keys`"),
            "{errors:?}"
        );
        assert!(errors[0].contains(words), "{errors:?} lacks {words}");
    }
}

#[test]
fn the_number_of_certificates_has_a_bound() {
    let pair = Authority::new("CA").leaf(&["a.example"]);
    let beyond = |message: &str| message.contains("1025 certificates in all; expected at most 1024");
    for count in [1023, 1024] {
        let more = "[[listener.certificate]]\nchain = \"0.pem\"\nkey = \"0.key\"\n".repeat(count);
        let folder = Folder::new(&[&pair], &more);
        let errors = folder.load().err().map(|errors| errors.to_string()).unwrap_or_default();
        assert_eq!(beyond(&errors), count == 1024, "{errors}");
        let errors = errors.replace(&format!("{}/", folder.folder.path().display()), "");
        assert!(
            errors.is_empty()
                || errors.starts_with(&format!("proxy.toml:{}:9: error: ", folder.text.lines().count() - 1))
        );
    }
}

#[test]
fn min_version_is_taken() {
    let settings =
        |text: &str| Folder::new(&[&Authority::new("CA").leaf(&["a.example"])], text).load().expect("sound");
    let loaded = settings("[listener.tls]\nmin_version = \"1.3\"\n");
    let tls = loaded.config.listeners[0].tls.as_ref().expect("its TLS");
    assert_eq!(tls.settings().min_version, MinVersion::Tls13);
}

const TODAY: (i32, u8, u8) = (2026, 1, 27);

/// A certificate that expired does not keep the others from serving: a warning, and as loud.
#[test]
fn certificates_that_clients_will_refuse_are_warned_of_at_their_files() {
    let authority = Authority::new("CA");
    let until = |year, month, day| {
        let mut params = params(&[&format!("until-{month}.example")]);
        params.not_after = rcgen::date_time_ymd(year, month, day);
        authority.issue(params, &rcgen::KeyPair::generate().expect("a key"))
    };
    let folder = Folder::new(&[&until(2026, 1, 20), &until(2026, 2, 1), &until(2026, 3, 1)], "");
    let line = |begin| folder.line(begin);
    assert_eq!(
        folder.warnings(TODAY),
        [
            format!(
                "proxy.toml:{}:9: warning: `listener.certificate.chain`: \"0.pem\" has expired on \
                 2026-01-20, 7 days ago: clients refuse it",
                line("chain = \"0.pem\"")
            ),
            format!(
                "proxy.toml:{}:9: warning: `listener.certificate.chain`: \"1.pem\" expires on 2026-02-01, in \
                 5 days",
                line("chain = \"1.pem\"")
            ),
        ]
    );
    folder.allow("2.key", 0o644);
    let warnings = folder.warnings((2020, 1, 2));
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(
        warnings[0]
            .contains("`listener.certificate.key`: \"2.key\" may be read by every user of this machine"),
        "{warnings:?}"
    );
}

#[test]
fn of_certificates_for_the_same_name_the_warning_says_which_is_used() {
    let authority = Authority::new("CA");
    let between = |names: &[&str], from, to| {
        let mut params = params(names);
        (params.not_before, params.not_after) =
            (rcgen::date_time_ymd(from, 1, 1), rcgen::date_time_ymd(to, 1, 1));
        authority.issue(params, &rcgen::KeyPair::generate().expect("a key"))
    };
    let old = between(&["b.example", "a.example"], 2020, 2027);
    let new = between(&["a.example"], 2025, 2030);
    let rsa = authority.issue(params(&["a.example"]), &crate::tls::testing::rsa_key());
    let folder = Folder::new(&[&old, &rsa, &new], "");
    let said = |day| {
        folder.warnings(day).into_iter().find(|warning| warning.contains("\"2.pem\"")).expect("a warning")
    };
    assert!(
        said(TODAY)
            .ends_with("\"2.pem\" is for \"a.example\" and ECDSA P-256 as \"0.pem\" is: that one is used")
    );
    assert!(said((2028, 1, 1)).ends_with("only this one is valid now, and used"));
    assert_eq!(folder.warnings(TODAY).len(), 1, "ECDSA and RSA stand side by side");

    let nameless = authority.leaf(&["192.0.2.1"]);
    let warnings = Folder::new(&[&old, &nameless], "").warnings(TODAY);
    assert!(warnings.iter().any(|warning| warning.ends_with(
        "\"1.pem\" is never used: it has no name, and is \
        not the first"
    )));
}

#[test]
fn a_staple_is_for_its_certificate() {
    let authority = Authority::new("CA");
    let (leaf, other) = (authority.leaf(&["a.example"]), authority.leaf(&["b.example"]));
    let folder = Folder::new(&[&leaf], "ocsp = \"0.ocsp\"\n");
    folder.write("0.ocsp", Response::new(&leaf.chain).der());
    assert_eq!(folder.warnings(TODAY), Vec::<String>::new());
    let warnings = folder.warnings((2026, 2, 3));
    assert!(
        warnings.len() == 1 && warnings[0].contains("`listener.certificate.ocsp`: \"0.ocsp\" was to be"),
        "{warnings:?}"
    );
    for (bytes, words) in [
        (Response::new(&other.chain).der(), "is for another certificate"),
        (leaf.chain.as_bytes().to_vec(), "is PEM, not DER"),
        (b"hello".to_vec(), "is no OCSP response"),
    ] {
        folder.write("0.ocsp", bytes);
        let errors = folder.errors();
        let start = format!(
            "proxy.toml:{}:8: error: `listener.certificate.ocsp`: \"0.ocsp\" {words}",
            folder.line("ocsp")
        );
        assert!(errors.len() == 1 && errors[0].starts_with(&start), "{errors:?} is not {start}");
    }
    std::fs::remove_file(folder.folder.path().join("0.ocsp")).expect("removed");
    assert!(
        folder.errors()[0].contains("`listener.certificate.ocsp`: \"0.ocsp\" cannot be read: no such file")
    );
}

/// A folder whose one upstream has these lines in `[upstream.tls]`.
fn with_upstream_tls(lines: &str) -> Folder {
    let folder = Folder::new(&[&Authority::new("CA").leaf(&["a.example"])], "");
    let text = folder.text.replace("[[route]]", &format!("[upstream.tls]\n{lines}[[route]]"));
    folder.write("proxy.toml", &text);
    Folder { text, ..folder }
}

fn upstream_tls(folder: &Folder) -> std::sync::Arc<crate::tls::client::ClientTls> {
    let loaded = folder.load().map_err(|errors| errors.to_string()).expect("sound");
    assert_eq!(resolve(&loaded.files), Ok(loaded.config.clone()));
    loaded.config.upstreams[0].tls.clone().expect("its TLS")
}

#[test]
fn tls_to_endpoints_is_read() {
    let authority = Authority::new("CA");
    let leaf = authority.leaf(&["client.example"]);
    let folder = with_upstream_tls(
        "server_name = \"app.example\"\nca = \"ca.pem\"\ncertificate = \"c.pem\"\nkey = \"c.key\"\n",
    );
    folder.write("ca.pem", authority.pem());
    folder.write("c.pem", &leaf.chain);
    folder.write("c.key", &leaf.key);
    folder.allow("c.key", 0o600);
    let tls = upstream_tls(&folder);
    let settings = tls.settings();
    assert_eq!(settings.server_name, Some("app.example".try_into().expect("a name")));
    assert_eq!(settings.trust, Trust::Ca(authority.pem().as_bytes().into()));
    assert_eq!(settings.certificate.as_deref(), Some(&*leaf.compiled()));
    assert_eq!(settings.alpn, ["http/1.1".into()]);
    assert_eq!(folder.warnings(TODAY), Vec::<String>::new());
    let warnings = folder.warnings((2041, 1, 1));
    let shown =
        "`upstream.tls.certificate`: \"c.pem\" has expired on 2040-01-01, 366 days ago: endpoints refuse it";
    assert!(warnings.iter().any(|warning| warning.contains(shown)), "{warnings:?}");

    for (file, bytes, key, words) in [
        ("ca.pem", &*leaf.key, "ca", "\"ca.pem\" holds a private key and no certificate"),
        ("c.pem", "", "certificate", "\"c.pem\" is empty"),
        ("c.key", &*authority.leaf(&["x"]).key, "key", "\"c.key\" does not belong to the certificate"),
    ] {
        let before = std::fs::read(folder.folder.path().join(file)).expect("read");
        folder.write(file, bytes);
        let errors = folder.errors();
        let start = format!(
            "proxy.toml:{}:{}: error: `upstream.tls.{key}`: {words}",
            folder.line(key),
            key.len() + 4
        );
        assert!(errors.len() == 1 && errors[0].starts_with(&start), "{errors:?} is not {start}");
        folder.write(file, before);
    }
}

#[test]
fn without_a_ca_the_systems_roots_are_passed_on() {
    let folder = with_upstream_tls("");
    // A machine without ca-certificates says so; one with them passes their bytes to the data plane.
    match system_roots() {
        Ok((place, bytes)) => {
            assert_eq!(upstream_tls(&folder).settings().trust, Trust::System(bytes.as_slice().into()));
            let loaded = load(&folder.folder.path().join("proxy.toml")).expect("valid");
            assert_eq!(loaded.watched.last(), Some(&place));
        }
        Err(reason) => assert!(folder.errors()[0].contains(&reason)),
    }
}

#[test]
fn verification_off_is_warned_of() {
    let folder = with_upstream_tls("verify = false\n");
    assert_eq!(upstream_tls(&folder).settings().trust, Trust::Anyone);
    let warnings = folder.warnings(TODAY);
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(
        warnings[0].starts_with(&format!(
            "proxy.toml:{}:10: warning: `upstream.tls.verify`: ",
            folder.line("verify")
        ))
    );
    assert!(warnings[0].contains("whoever is on the way can read and change everything"));
}

#[test]
fn a_tunnel_offers_no_application_protocol() {
    let folder = with_upstream_tls("verify = false\n");
    let tcp =
        "[[listener]]\nname = \"t\"\naddress = \"127.0.0.1:1\"\nprotocol = \"tcp\"\nupstream = \"app\"\n";
    folder.write("proxy.toml", format!("{}{tcp}", folder.text));
    assert_eq!(upstream_tls(&folder).settings().alpn, []);
}

#[test]
fn keys_for_client_certificates_need_each_other_and_lists_their_ca() {
    let (authority, impostor) = (Authority::new("CA"), Authority::new("CA"));
    let pair = authority.leaf(&["a.example"]);
    let errors = |tls: &str| {
        let folder = Folder::new(&[&pair], tls);
        folder.write("ca.pem", authority.pem());
        folder.write("good.crl", authority.crl(2030).der());
        folder.write(
            "both.pem",
            authority.crl(2030).pem().expect("PEM") + &authority.crl(2030).pem().expect("PEM"),
        );
        folder.write("impostor.crl", impostor.crl(2030).der());
        folder.write("other.crl", Authority::new("Other").crl(2030).der());
        (folder.load().is_err().then(|| folder.errors().join("\n")), folder)
    };
    let ca = "[listener.tls]\nclient_ca = \"ca.pem\"\n";
    let route = "\n[[route]]\npath_prefix = \"/x\"\nupstream = \"app\"\nclient_cert = \"require\"\n";
    for sound in [
        format!("{ca}client_auth = \"optional\"\nclient_crl = [\"good.crl\", \"other.crl\"]{route}"),
        format!("{ca}client_crl = [\"both.pem\"]\ncrl_expired = \"accept\"\n"),
    ] {
        assert_eq!(errors(&sound).0, None);
    }
    for (tls, words) in [
        (
            "[listener.tls]\nclient_auth = \"optional\"\n".to_owned(),
            "`listener.tls.client_auth` has no effect",
        ),
        (
            "[listener.tls]\nclient_crl = [\"good.crl\"]\n".to_owned(),
            "`listener.tls.client_crl` has no effect",
        ),
        (format!("{ca}crl_expired = \"accept\"\n"), "`listener.tls.crl_expired` has no effect"),
        (format!("{ca}client_crl = [\"none.crl\"]\n"), "\"none.crl\" cannot be read: "),
        (
            format!("{ca}client_crl = [\"ca.pem\"]\n"),
            "holds a certificate and no list of revoked certificates",
        ),
        (format!("{ca}client_crl = [\"impostor.crl\"]\n"), "the CA of that name has not signed it"),
        (format!("{ca}client_crl = [\"other.crl\"]\n"), "hold no list of a CA of client_ca"),
        (route.to_owned(), "can be met by nobody"),
    ] {
        let said = errors(&tls).0.expect(words);
        assert!(said.contains(words) && said.lines().count() == 1, "{said} is not {words}");
    }
    let (_, folder) = errors(&format!("{ca}client_crl = [\"good.crl\", \"other.crl\"]\n"));
    let at = |day| folder.warnings(day).join("\n");
    assert!(at((2026, 1, 1)).contains("\"other.crl\" is of \"CN=Other\", which is none of client_ca"));
    assert!(at((2031, 1, 1)).contains("\"good.crl\" of \"CN=CA\" was to be replaced on 2030-12-31"));
}

#[test]
fn early_data_beside_tickets_is_an_error() {
    let pair = Authority::new("CA").leaf(&["a.example"]);
    for (line, words) in [
        (
            "early_data = true",
            ": needs session_tickets = false, since a ticket can be played back and its early data with it; \
             expected session_tickets = false",
        ),
        ("early_data = 1", " is an integer"),
    ] {
        let folder = Folder::new(&[&pair], &format!("[listener.tls]\n{line}\n"));
        let (errors, at) = (folder.errors(), folder.line("early_data"));
        let start = format!("proxy.toml:{at}:14: error: `listener.tls.early_data`{words}");
        assert!(errors.len() == 1 && errors[0].starts_with(&start), "{errors:?} is not {start}");
    }
}
