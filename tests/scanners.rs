//! Reports of TLS scanners about an https listener. sslyze compares it with Mozilla's intermediate profile;
//! testssl.sh looks for weak protocols and ciphers and for every attack that it knows.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, SystemTime};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use serde_json::Value;
use tests::origin::Origin;
use tests::sluice::{Setup, Sluice};
use tests::tls::{Authority, Leaf, https};
use tests::{process, skip};

const NAME: &str = "edge.example";
/// testssl.sh takes about 20 s on a quiet machine. It waits most of that time.
const LIMIT: Duration = Duration::from_secs(180);

/// A certificate as a public CA would make it. The verifier in sslyze insists on each of these extensions.
fn leaf(issuer: &Issuer<'_, KeyPair>, algorithm: &'static rcgen::SignatureAlgorithm) -> Leaf {
    let key = KeyPair::generate_for(algorithm).unwrap();
    let mut params = CertificateParams::new([NAME.to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, NAME);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    let day = Duration::from_secs(86_400);
    (params.not_before, params.not_after) =
        ((SystemTime::now() - day).into(), (SystemTime::now() + 60 * day).into());
    Leaf { chain: params.signed_by(&key, issuer).unwrap().pem(), key: key.serialize_pem(), ocsp: None }
}

/// A listener with an ECDSA and an RSA certificate for one name, and no other setting.
fn edge(origin: &Origin) -> Sluice {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "Scanned CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate().unwrap();
    let pem = params.self_signed(&key).unwrap().pem();
    let issuer = Issuer::new(params, key);
    let leaves =
        [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_RSA_SHA256].map(|algorithm| leaf(&issuer, algorithm));
    let setup = https(Setup::to(origin.address()), &Authority::default(), &leaves, "");
    std::fs::write(setup.run_dir().join("ca.pem"), pem).unwrap();
    setup.start()
}

#[test]
fn sslyze_finds_mozillas_intermediate_profile_kept() {
    let Some(sslyze) = sslyze() else { return };
    let origin = Origin::echo();
    let sluice = edge(&origin);
    let run = |profile: &str| {
        let mut command = Command::new(&sslyze);
        command
            .args(["--mozilla_config", profile, "--sni", NAME, "--certinfo_ca_file"])
            .arg(sluice.file("ca.pem"));
        let output = process::run(command.arg(sluice.address().to_string()), LIMIT);
        (output.code(), output.all())
    };
    let (code, shown) = run("intermediate");
    assert!(code == 0 && shown.contains("OK - Compliant"), "{shown}");
    // sslyze really compares: the listener fails the modern profile, which has no TLS 1.2.
    let (code, shown) = run("modern");
    assert!(code != 0 && shown.contains("FAILED - Not compliant"), "{shown}");
    assert_eq!(sluice.metrics().sum("sluice_session_panics_total"), 0.0);
}

/// The path of sslyze where `cargo xtask test` installs it, else in `PATH`. An empty path means that the
/// installation failed.
fn sslyze() -> Option<PathBuf> {
    let installed = std::env::var_os("SLUICE_SSLYZE").map(PathBuf::from);
    if installed.as_ref().is_some_and(|path| path.as_os_str().is_empty()) {
        skip::skip(skip::Reason::PackageMissing, "sslyze");
        return None;
    }
    installed.or_else(|| (!skip::without_tool("sslyze")).then(|| "sslyze".into()))
}

/// Findings of testssl.sh that are no fault of protocols, ciphers or their use.
const EXPECTED: [(&str, &str); 2] = [
    ("engine_problem", "its OpenSSL has no GOST"),
    ("RC4", "its OpenSSL has no RC4 to ask for; `cipherlist_*` shows that there is none"),
];

#[test]
fn testssl_finds_no_weak_protocol_or_cipher_and_no_known_attack() {
    let program = ["testssl", "testssl.sh"].into_iter().find(|name| installed(name));
    let Some(program) = program else {
        let _ = skip::without_tool("testssl");
        return;
    };
    let origin = Origin::echo();
    let sluice = edge(&origin);
    let report = sluice.file("testssl.json");
    // Checked: protocols, ciphers, forward secrecy, every vulnerability. Not checked: the server's order of
    // ciphers (Mozilla's intermediate profile leaves it to the client), the chain (its CA is not trusted),
    // and simulated clients. The order and the clients take longer than all the rest.
    let mut command = Command::new(program);
    command.args([
        "--quiet",
        "--color",
        "0",
        "--warnings",
        "off",
        "--fast",
        "-n",
        "none",
        "-p",
        "-s",
        "-f",
        "-U",
        "--jsonfile",
    ]);
    let output = process::run(command.arg(&report).arg(sluice.address().to_string()), LIMIT);
    let text = std::fs::read_to_string(&report).unwrap_or_else(|error| panic!("{error}: {}", output.all()));
    let findings: Vec<Value> = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    let severity = |id: &str| {
        findings
            .iter()
            .find(|finding| finding["id"] == id)
            .map(|finding| finding["severity"].as_str().unwrap())
    };
    // The report contains these checks.
    for id in [
        "SSLv2",
        "TLS1_2",
        "TLS1_3",
        "cipherlist_NULL",
        "heartbleed",
        "ticketbleed",
        "ROBOT",
        "secure_client_renego",
        "LUCKY13",
    ] {
        assert_eq!(severity(id), Some("OK"), "{id} in {text}");
    }
    for finding in &findings {
        let (id, level) = (finding["id"].as_str().unwrap(), finding["severity"].as_str().unwrap());
        let is_expected = EXPECTED.iter().any(|(expected, _)| *expected == id);
        assert!(["OK", "INFO", "LOW"].contains(&level) || (is_expected && level == "WARN"), "{finding}");
    }
}

fn installed(program: &str) -> bool {
    std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
        .any(|folder| folder.join(program).is_file())
}
