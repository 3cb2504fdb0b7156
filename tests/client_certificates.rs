//! `client_ca` with the released binary: whose certificates Sluice accepts, which facts about them it tells
//! the endpoint, and how it refuses other clients.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tests::client::PATIENCE;
use tests::origin::Origin;
use tests::ports::Port;
use tests::sluice::{Setup, Sluice};
use tests::tls::{Authority, Kind, converse, https};
use tests::{eventually, process, skip};

const NAME: &str = "edge.example";
/// A request that ends the connection.
const LAST: &str = "GET / HTTP/1.1\r\nHost: edge.example\r\nConnection: close\r\n\r\n";
/// Each TLS version, as options of openssl and of curl.
const VERSIONS: [(&str, &[&str]); 2] =
    [("-tls1_3", &["--tlsv1.3"]), ("-tls1_2", &["--tlsv1.2", "--tls-max", "1.2"])];

/// A Sluice whose listener asks for certificates of a CA that the test made. The clients' files lie beside
/// its configuration.
struct Stage {
    sluice: Sluice,
    origin: Origin,
    /// A second listener with the same server certificate. It asks for no client certificate.
    open: Port,
}

/// The alert for a missing client certificate, and its number.
fn missing(version: &str) -> (&'static str, u8) {
    if version == "-tls1_3" { ("certificate_required", 116) } else { ("handshake_failure", 40) }
}

/// The contents of a client's certificate.
fn params(valid: bool) -> CertificateParams {
    let mut params =
        CertificateParams::new(["client.example".to_owned(), "alias.example".to_owned()]).unwrap();
    params.subject_alt_names.push(SanType::URI("spiffe://edge.example/billing;v=1".try_into().unwrap()));
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CountryName, "AT");
    params.distinguished_name.push(DnType::OrganizationName, "Billing, \"EU\"");
    params.distinguished_name.push(DnType::CommonName, "client");
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    let now = SystemTime::now();
    let hour = Duration::from_secs(3600);
    params.not_before = (now - 48 * hour).into();
    params.not_after = (if valid { now + 48 * hour } else { now - hour }).into();
    params
}

impl Stage {
    /// `None`: curl or openssl is not installed.
    fn start() -> Option<Self> {
        if ["curl", "openssl"].into_iter().any(skip::without_tool) {
            return None;
        }
        let origin = Origin::echo();
        let (servers, clients) = (Authority::default(), Authority::default());
        // A CA with another name, and a CA that only has the same name as ours.
        let (strangers, impostors) = (Authority::named("Another CA"), Authority::default());
        let open = Port::lease();
        let setup = Setup::to(origin.address());
        let folder = setup.run_dir().to_owned();
        let write = |name: &str, text: &str| std::fs::write(folder.join(name), text).unwrap();
        for (name, authority, valid) in [
            ("good", &clients, true),
            ("stranger", &strangers, true),
            ("impostor", &impostors, true),
            ("expired", &clients, false),
        ] {
            let key = KeyPair::generate().unwrap();
            write(&format!("{name}.pem"), &authority.sign(params(valid), &key));
            write(&format!("{name}.key"), &key.serialize_pem());
        }
        write("clients.pem", &clients.pem);
        let tables = format!(
            "[[listener]]\nname = \"open\"\naddress = \"{}\"\nprotocol = \"https\"\n\
             certificate = [{{ chain = \"0.pem\", key = \"0.key\" }}]\n",
            open.loopback()
        );
        let leaf = servers.leaf(Kind::P256, &[NAME]);
        let setup = https(setup, &servers, &[leaf], "client_ca = \"clients.pem\"").append(&tables);
        Some(Self { sluice: setup.start(), origin, open })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.sluice.file(name)
    }

    /// The options of openssl or curl that name a client's certificate.
    fn certificate(&self, option: &str, name: &str) -> [String; 4] {
        let path = |end: &str| self.path(&format!("{name}.{end}")).display().to_string();
        [format!("{option}cert"), path("pem"), format!("{option}key"), path("key")]
    }

    /// The output of openssl for one of the clients' certificates.
    fn described(&self, name: &str, options: &[&str]) -> String {
        let mut command = Command::new("openssl");
        command.args(["x509", "-noout", "-in"]).arg(self.path(&format!("{name}.pem"))).args(options);
        let text = process::run(&mut command, PATIENCE).success().text();
        text.trim().split_once('=').unwrap().1.to_owned()
    }

    /// How many handshakes failed for their client certificate, and how often this alert was sent.
    fn refused(&self, alert: &str) -> (f64, f64) {
        let metrics = self.sluice.metrics();
        let failed = metrics.labelled("sluice_tls_handshakes_failed_total", "reason", "client_certificate");
        (failed, metrics.labelled("sluice_tls_alerts_sent_total", "alert", alert))
    }

    /// Sends one request by openssl to a port and returns all that openssl printed. The session is kept in a
    /// file; if the file exists, openssl resumes the session.
    fn ask(&self, port: u16, options: &[String], session: &Path) -> String {
        let mut command = Command::new("openssl");
        command.args(["s_client", "-connect", &format!("127.0.0.1:{port}"), "-servername", NAME, "-CAfile"]);
        command.arg(self.path("ca.pem")).args(options);
        if session.exists() {
            command.arg("-sess_in").arg(session);
        }
        converse(command.arg("-sess_out").arg(session), &[(LAST, "")])
    }
}

#[test]
fn a_good_certificate_reaches_the_origin_and_a_forged_field_does_not() {
    let Some(stage) = Stage::start() else { return };
    let hash = stage.described("good", &["-fingerprint", "-sha256"]).replace(':', "").to_lowercase();
    // Both follow RFC 4514: openssl writes RFC 2253 with a backslash before the character itself, Sluice with
    // the character's number.
    let subject = stage.described("good", &["-subject", "-nameopt", "RFC2253"]);
    let subject = subject.replace("\\,", "\\2C").replace("\\\"", "\\22");
    assert_eq!(subject, "CN=client,O=Billing\\2C \\22EU\\22,C=AT");
    let wanted = format!(
        "Hash={hash};Subject=\"{subject}\";URI=\"spiffe://edge.example/billing;v=1\";\
         DNS=client.example;DNS=alias.example"
    );
    let check = |shown: &str| {
        let start = shown.find("{\"").unwrap_or_else(|| panic!("{shown}"));
        let echoed = serde_json::Deserializer::from_str(&shown[start..]).into_iter().next();
        let echoed: serde_json::Value = echoed.unwrap().unwrap();
        let fields = echoed["fields"].as_array().unwrap_or_else(|| panic!("{shown}"));
        let named = fields
            .iter()
            .filter(|field| field[0].as_str().unwrap().eq_ignore_ascii_case("x-forwarded-client-cert"));
        let values: Vec<&str> = named.map(|field| field[1].as_str().unwrap()).collect();
        assert_eq!(values, [wanted.as_str()], "{shown}");
    };
    for (version, curl) in VERSIONS {
        let certificate = stage.certificate("--", "good");
        let certificate: Vec<&str> = certificate.iter().map(String::as_str).collect();
        let forged = [
            "-H",
            "X-Forwarded-Client-Cert: Hash=00;Subject=\"CN=root\"",
            "-H",
            "x-forwarded-client-cert: Hash=11",
            "-H",
            "Via: 1",
        ];
        check(&stage.sluice.curl(NAME, "/", &[curl, &certificate, &forged].concat()).success().text());
        // On a connection that stays open, each request carries the certificate.
        let certificate = stage.certificate("-", "good");
        let certificate: Vec<&str> = certificate.iter().map(String::as_str).collect();
        let forged = LAST.replace("Connection", "X-FORWARDED-CLIENT-CERT: Hash=22\r\nConnection");
        let first = forged.replace("Connection: close\r\n", "");
        let options = [&[version, "-servername", NAME], &certificate[..]].concat();
        let shown = stage.sluice.openssl(&options, &[(&first, "---"), (&forged, "\"trailers\":[]")]);
        assert!(shown.contains("Verification: OK"), "{shown}");
        let (first, second) = shown.rsplit_once("HTTP/1.1 200").unwrap();
        check(first.rsplit_once("HTTP/1.1 200").unwrap().1);
        check(second);
    }
    let metrics = stage.sluice.metrics();
    assert_eq!((metrics.sum("sluice_tls_handshakes_failed_total"), stage.origin.requests()), (0.0, 6));
}

#[test]
fn no_certificate_a_strangers_and_an_expired_one_are_refused_by_name() {
    let Some(stage) = Stage::start() else { return };
    for (name, alert, number) in [
        (None, "", 0),
        (Some("stranger"), "unknown_ca", 48),
        (Some("impostor"), "decrypt_error", 51),
        (Some("expired"), "certificate_expired", 45),
    ] {
        for (version, curl) in VERSIONS {
            let (alert, number) = if name.is_none() { missing(version) } else { (alert, number) };
            let before = stage.refused(alert);
            let certificate = name.map_or_else(Vec::new, |name| stage.certificate("-", name).to_vec());
            let certificate: Vec<&str> = certificate.iter().map(String::as_str).collect();
            let shown =
                stage.sluice.openssl(&[&[version, "-servername", NAME], &certificate[..]].concat(), &[]);
            assert!(shown.contains(&format!("SSL alert number {number}\n")), "{name:?} {version}: {shown}");
            let certificate = name.map_or_else(Vec::new, |name| stage.certificate("--", name).to_vec());
            let certificate: Vec<&str> = certificate.iter().map(String::as_str).collect();
            let output = stage.sluice.curl(NAME, "/", &[curl, &certificate].concat());
            // The alert decides with which code curl fails. Code 28 would mean that curl waited for its
            // timeout.
            assert!(
                ![0, 28].contains(&output.code()) && output.stdout.is_empty(),
                "{name:?} {version}: {}",
                output.all()
            );
            eventually(PATIENCE, &format!("{alert} is counted twice: {:?}", stage.refused(alert)), || {
                (stage.refused(alert) == (before.0 + 2.0, before.1 + 2.0)).then_some(())
            });
        }
    }
    let metrics = stage.sluice.metrics();
    assert_eq!(metrics.sum("sluice_tls_handshakes_failed_total"), 16.0, "each once, and for no other reason");
    assert_eq!(metrics.sum("sluice_tls_alerts_sent_total"), 16.0);
    assert_eq!((stage.origin.requests(), metrics.sum("sluice_tls_handshakes_total")), (0, 0.0));
}

#[test]
fn a_session_without_a_certificate_is_no_way_in_where_one_is_asked_for() {
    let Some(stage) = Stage::start() else { return };
    let (guarded, open) = (stage.sluice.address().port(), stage.open.number());
    for (version, _) in VERSIONS {
        let anonymous = [version.to_owned()];
        let named = [&anonymous[..], &stage.certificate("-", "good")].concat();
        let session = stage.path(&format!("session{version}"));
        let copy = stage.path(&format!("copy{version}"));
        let shown = stage.ask(open, &anonymous, &session);
        assert!(shown.contains("HTTP/1.1 200") && shown.contains("\nNew, "), "{shown}");
        std::fs::copy(&session, &copy).unwrap();
        let shown = stage.ask(open, &anonymous, &copy);
        assert!(
            shown.contains("HTTP/1.1 200") && shown.contains("\nReused, "),
            "it can be resumed where it began: {shown}"
        );
        // The guarded listener does not resume the session: a client without a certificate is refused, a
        // client with one gets a new session.
        std::fs::copy(&session, &copy).unwrap();
        let shown = stage.ask(guarded, &anonymous, &copy);
        assert!(
            !shown.contains("HTTP/1.1 200")
                && shown.contains(&format!("SSL alert number {}\n", missing(version).1)),
            "{shown}"
        );
        let shown = stage.ask(guarded, &named, &session);
        assert!(shown.contains("HTTP/1.1 200") && shown.contains("\nNew, "), "{shown}");
        // The new session is resumed there and still names the certificate's owner.
        let shown = stage.ask(guarded, &named, &session);
        assert!(shown.contains("\nReused, ") && shown.contains("Subject=\\\"CN=client,"), "{shown}");
    }
    let metrics = stage.sluice.metrics();
    assert_eq!(metrics.sum("sluice_tls_handshakes_failed_total"), 2.0);
}

/// A listener for which a certificate is optional, a route that wants one, and a file of revoked
/// certificates, as `openssl ca` makes it.
struct Optional {
    sluice: Sluice,
    authority: Authority,
}

impl Optional {
    /// `None`: curl or openssl is not installed.
    fn start(lines: &str) -> Option<Self> {
        if ["curl", "openssl"].into_iter().any(skip::without_tool) {
            return None;
        }
        let (servers, authority) = (Authority::default(), Authority::named("Clients"));
        let origin = Origin::echo();
        let setup = Setup::to(origin.address());
        let folder = setup.run_dir().to_owned();
        let write = |name: &str, text: &str| std::fs::write(folder.join(name), text).unwrap();
        for name in ["good", "bad"] {
            let key = KeyPair::generate().unwrap();
            write(&format!("{name}.pem"), &authority.sign(params(true), &key));
            write(&format!("{name}.key"), &key.serialize_pem());
        }
        write("clients.pem", &authority.pem);
        write("clients.key", authority.key());
        write("index.txt", "");
        write("crlnumber", "01\n");
        write(
            "ca.cnf",
            &format!(
                "[ca]\ndefault_ca = d\n[d]\ndatabase = {0}/index.txt\ncrlnumber = {0}/crlnumber\n\
                 default_md = sha256\ndefault_crl_days = 30\nunique_subject = no\n",
                folder.display()
            ),
        );
        ca(&folder, &["-gencrl", "-out", "crl.pem"]);
        let lines = format!("client_ca = \"clients.pem\"\n{lines}");
        let leaf = servers.leaf(Kind::P256, &[NAME]);
        let route = "[[route]]\npath_prefix = \"/private\"\nupstream = \"app\"\nclient_cert = \"require\"\n";
        let access = folder.join("access.log");
        let setup = https(setup, &servers, &[leaf], &lines)
            .append(route)
            .with("log", &format!("access = \"{}\"\n", access.display()));
        // The origin lives as long as the test's process.
        std::mem::forget(origin);
        Some(Self { sluice: setup.start(), authority })
    }

    fn ask(&self, who: Option<&str>, path: &str) -> String {
        let mut options = vec!["-i".to_owned()];
        if let Some(who) = who {
            options
                .extend(["--cert".to_owned(), self.sluice.file(&format!("{who}.pem")).display().to_string()]);
            options
                .extend(["--key".to_owned(), self.sluice.file(&format!("{who}.key")).display().to_string()]);
        }
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        let output = self.sluice.curl(NAME, path, &options);
        output.text() + &output.errors()
    }

    fn failed(&self, reason: &str) -> f64 {
        self.sluice.metrics().labelled("sluice_tls_handshakes_failed_total", "reason", reason)
    }
}

fn ca(folder: &Path, options: &[&str]) {
    let mut command = Command::new("openssl");
    command.current_dir(folder).args(["ca", "-batch", "-config", "ca.cnf", "-keyfile", "clients.key"]);
    let _ = process::run(command.args(["-cert", "clients.pem"]).args(options), PATIENCE).success();
}

#[test]
fn an_optional_certificate_opens_the_routes_that_want_one() {
    let Some(stage) = Optional::start("client_auth = \"optional\"") else { return };
    for (who, path, status, is_told) in [
        (None, "/", "200", false),
        (None, "/private", "403", false),
        (Some("good"), "/", "200", true),
        (Some("good"), "/private", "200", true),
    ] {
        let answer = stage.ask(who, path);
        assert!(answer.contains(&format!(" {status}")), "{who:?} {path}: {answer}");
        let told = answer.to_ascii_lowercase().contains("\"x-forwarded-client-cert\"");
        assert_eq!(told, is_told, "{who:?} {path}: {answer}");
    }
    let log = || std::fs::read_to_string(stage.sluice.file("access.log")).unwrap_or_default();
    eventually(PATIENCE, "four records", || (log().lines().count() == 4).then_some(()));
    let verdicts: Vec<String> = log()
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .map(|record| format!("{} {}", record["tls"]["client_certificate"], record["refused"]))
        .collect();
    let none = "\"none\" null";
    let verified = "\"verified\" null";
    assert_eq!(verdicts, [none, "\"none\" \"no_client_certificate\"", verified, verified]);
}

#[test]
fn a_certificate_that_is_revoked_is_refused_from_the_next_list_on() {
    let Some(stage) = Optional::start("client_crl = [\"crl.pem\"]") else { return };
    assert!(stage.ask(Some("bad"), "/private").contains(" 200"));
    let folder = stage.sluice.run_dir().to_owned();
    let status = stage.sluice.command("status").success().text();
    assert!(status.contains("revoked certificates of") && status.contains("CN=Clients"), "{status}");
    // A connection that stays open, and a session to resume.
    let connect = |name: &str| {
        let mut roots = rustls::RootCertStore::empty();
        let read = |name: &str| std::fs::read(stage.sluice.file(name)).unwrap();
        roots.add(CertificateDer::from_pem_slice(&read("ca.pem")).unwrap()).unwrap();
        let chain = vec![CertificateDer::from_pem_slice(&read(&format!("{name}.pem"))).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(&read(&format!("{name}.key"))).unwrap();
        let builder =
            rustls::ClientConfig::builder_with_provider(rustls::crypto::aws_lc_rs::default_provider().into());
        let builder = builder.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots);
        Arc::new(builder.with_client_auth_cert(chain, key).unwrap())
    };
    let (bad, good) = (connect("bad"), connect("good"));
    let mut open = stage.sluice.secured(&bad, NAME);
    assert_eq!(open.get("/private").status, 200);
    let mut resumed = stage.sluice.secured(&bad, NAME);
    assert_eq!(resumed.get("/private").status, 200);
    let kinds = |kind| stage.sluice.metrics().labelled("sluice_tls_handshakes_total", "kind", kind);
    assert_eq!(kinds("1.3_resumed"), 1.0);

    ca(&folder, &["-revoke", "bad.pem"]);
    ca(&folder, &["-gencrl", "-out", "next.pem"]);
    std::fs::rename(folder.join("next.pem"), folder.join("crl.pem")).unwrap();
    // The files are looked at every two seconds.
    eventually(PATIENCE, "the new list", || stage.ask(Some("bad"), "/").contains("revoked").then_some(()));
    assert!(stage.ask(Some("good"), "/private").contains(" 200"));
    eventually(PATIENCE, "the reason", || (stage.failed("client_revoked") >= 1.0).then_some(()));
    let closed = || {
        stage.sluice.metrics().labelled("sluice_connections_closed_total", "reason", "client_auth_changed")
    };
    // The new list may have come between a handshake of curl and its request.
    let before = closed();
    // Neither the open connection nor the session serves any more.
    open.send(format!("GET /private HTTP/1.1\r\nHost: {NAME}\r\n\r\n"));
    assert_eq!(open.until_closed(), b"");
    eventually(PATIENCE, "the end's reason", || (closed() == before + 1.0).then_some(()));
    let before = stage.failed("client_revoked");
    let socket = std::net::TcpStream::connect(stage.sluice.address()).unwrap();
    if let Ok(mut stream) = tests::tls::handshake(socket, &bad, NAME) {
        // In TLS 1.3 a client learns of it with its first read.
        assert!(stream.read(&mut [0]).is_err());
    }
    eventually(PATIENCE, "no resumption", || (stage.failed("client_revoked") == before + 1.0).then_some(()));
    assert_eq!(stage.sluice.secured(&good, NAME).get("/private").status, 200);
}

#[test]
fn an_expired_list_refuses_everybody_unless_it_is_accepted() {
    let Some(stage) = Optional::start("client_crl = [\"crl.pem\"]") else { return };
    assert!(stage.ask(Some("good"), "/").contains(" 200"));
    std::fs::write(stage.sluice.file("next.pem"), stage.authority.crl(-2)).unwrap();
    std::fs::rename(stage.sluice.file("next.pem"), stage.sluice.file("crl.pem")).unwrap();
    eventually(PATIENCE, "the end", || (!stage.ask(Some("good"), "/").contains(" 200")).then_some(()));
    let unchecked = || (stage.failed("client_unchecked") >= 1.0).then_some(());
    eventually(PATIENCE, "the reason", unchecked);
    let log = stage.sluice.log();
    assert!(log.contains("was to be replaced on"), "{log}");
    let status = stage.sluice.command("status").success().text();
    assert!(status.contains("expired"), "{status}");
    let text = stage.sluice.configuration().replace("client_crl", "crl_expired = \"accept\"\nclient_crl");
    std::fs::write(stage.sluice.config_path(), text).unwrap();
    let _ = stage.sluice.command("reload").success();
    assert!(stage.ask(Some("good"), "/").contains(" 200"));
    // A list of somebody else is an error that leaves everything as it is.
    std::fs::write(stage.sluice.file("crl.pem"), Authority::named("Clients").crl(30)).unwrap();
    let refused = stage.sluice.command("reload");
    assert!(!refused.status.success());
    assert!(refused.errors().contains("has not signed it"), "{}", refused.errors());
    assert!(stage.ask(Some("good"), "/").contains(" 200"));
}
