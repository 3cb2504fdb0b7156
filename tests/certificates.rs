//! Certificates as an operator meets them, with the released binary: the messages of `check` for wrong and
//! doubtful certificates, and the places that show when a certificate expires.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, KeyPair};
use tests::origin::Origin;
use tests::process;
use tests::skip;
use tests::sluice::{self, Setup};

const LIMIT: Duration = Duration::from_secs(10);

/// A self-signed certificate and its key, PEM. `from` and `to` are days from today.
fn certificate(name: &str, from: i64, to: i64) -> (String, String) {
    let mut params = CertificateParams::new([name.to_owned()]).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    let day = |days: i64| {
        let at = SystemTime::now();
        let distance = Duration::from_secs(days.unsigned_abs() * 86_400 + 3600);
        if days < 0 { at - distance } else { at + distance }
    };
    (params.not_before, params.not_after) = (day(from).into(), day(to).into());
    let key = KeyPair::generate().unwrap();
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

/// An https listener with these certificates, as files in its run_dir.
fn setup(origin: &Origin, certificates: &[(String, String)]) -> Setup {
    let mut lines = "protocol = \"https\"\n".to_owned();
    for index in 0..certificates.len() {
        lines += &format!("[[listener.certificate]]\nchain = \"{index}.pem\"\nkey = \"{index}.key\"\n");
    }
    let setup = Setup::to(origin.address()).with("listener", &lines);
    for (index, (chain, key)) in certificates.iter().enumerate() {
        write(&setup, &format!("{index}.pem"), chain);
        write(&setup, &format!("{index}.key"), key);
    }
    setup
}

fn write(setup: &Setup, name: &str, text: &str) {
    let path = setup.run_dir().join(name);
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

#[test]
fn check_says_what_is_wrong_with_a_file_and_where_it_is_named() {
    let origin = Origin::echo();
    let (good, other) = (certificate("a.example", -1, 90), certificate("b.example", -1, 90));
    let setup = setup(&origin, &[good.clone(), other.clone()]);
    let path = setup.write();
    let check = || sluice::command(&["check", "--config", path.to_str().unwrap()]);
    assert!(check().status.success(), "{}", check().errors());
    for (file, text, before, words) in [
        ("0.pem", "", &good.0, "0.pem\" is empty"),
        ("0.pem", &*good.1, &good.0, "0.pem\" holds a private key and no certificate"),
        ("1.key", &*good.1, &other.1, "1.key\" does not belong to the certificate"),
        ("1.key", "-----BEGIN ENCRYPTED PRIVATE KEY-----\n", &other.1, "1.key\" is encrypted"),
    ] {
        write(&setup, file, text);
        let output = check();
        assert!(!output.status.success());
        let (kind, said) = (if file.ends_with("pem") { "chain" } else { "key" }, output.errors());
        let text = setup.text();
        let line = text.lines().position(|line| line == format!("{kind} = \"{file}\"")).unwrap() + 1;
        for words in
            [format!("`listener.certificate.{kind}`"), words.to_owned(), format!("proxy.toml:{line}:")]
        {
            // Long lines are wrapped for the terminal.
            let said = said.replace("\n  │ ", " ");
            assert!(said.contains(&words), "no {words:?} in\n{said}");
        }
        assert!(!said.contains(good.1.lines().nth(1).unwrap()), "nothing of a key is shown");
        write(&setup, file, before);
    }
    std::fs::remove_file(setup.run_dir().join("1.key")).unwrap();
    assert!(check().errors().contains("no such file"));
}

#[test]
fn an_expired_certificate_is_warned_of_and_the_others_serve() {
    if skip::without_tool("curl") {
        return;
    }
    let origin = Origin::echo();
    let good = certificate("a.example", -1, 90);
    let setup = setup(
        &origin,
        &[certificate("old.example", -30, -3), good.clone(), certificate("soon.example", -30, 5)],
    );
    write(&setup, "ca.pem", &good.0);
    let ca = setup.run_dir().join("ca.pem");
    let sluice = setup.start();
    // Long lines are wrapped for the terminal.
    let log = sluice.log().replace("\n  │ ", " ");
    for words in ["has expired on", "3 days ago", "expires on", "in 5 days"] {
        assert!(log.contains(words), "no {words:?} in\n{log}");
    }
    let resolve = format!("a.example:{0}:{1}", sluice.address().port(), sluice.address().ip());
    let url = format!("https://a.example:{}/", sluice.address().port());
    let curl = process::run(
        Command::new("curl")
            .args(["-sS", "-o", "/dev/null", "-w", "%{http_code}", "--cacert"])
            .arg(ca)
            .args(["--resolve", &resolve, &url]),
        LIMIT,
    );
    assert_eq!(curl.success().text(), "200");

    let metrics = sluice.metrics();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
    for (name, days) in [("old.example", -3.0), ("a.example", 90.0), ("soon.example", 5.0)] {
        let end = metrics.labelled("sluice_certificate_not_after_timestamp_seconds", "name", name);
        assert!(((end - now) / 86_400.0 - days).abs() < 0.1, "{name}: {end}");
    }
    let certificates = sluice.status()["data_plane"]["certificates"].clone();
    assert_eq!(certificates.as_array().unwrap().len(), 3);
    assert_eq!(
        (&certificates[0]["name"], &certificates[0]["listener"]),
        (&"old.example".into(), &"main".into())
    );
    assert!(certificates[0]["remaining_seconds"].as_i64().unwrap() < 0);
    let shown = sluice.command("status").success().text();
    let line = |name: &str| {
        shown
            .lines()
            .find(|line| line.contains(name))
            .unwrap_or_else(|| panic!("no {name} in\n{shown}"))
            .to_owned()
    };
    assert!(line("old.example").ends_with("expired"), "{shown}");
    // The certificate is a few moments old, so nearly 5 days may be left.
    let soon = line("soon.example");
    assert!(soon.contains("  5d ") || soon.contains("  4d 23h"), "{shown}");
}
