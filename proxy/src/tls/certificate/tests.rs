//! Certificates that are taken, certificates that are refused with their reasons, and the facts about them.

use rcgen::{DnType, KeyPair};

use super::*;
use crate::tls::testing::{Authority, Pair, key, params, rsa_key};

/// The errors of a pair, each with its file.
#[track_caller]
fn refused(chain: &str, key: &str) -> (Part, String) {
    let error = Certificate::new(Files { chain: chain.as_bytes(), key: key.as_bytes(), ocsp: None })
        .expect_err("refused");
    assert!(!error.expected.is_empty());
    (error.part, error.message)
}

#[test]
fn every_kind_of_key_is_known() {
    let authority = Authority::new("CA");
    for (key, kind) in [
        (KeyPair::generate().expect("a key"), KeyKind::EcdsaP256),
        (key(&rcgen::PKCS_ECDSA_P384_SHA384), KeyKind::EcdsaP384),
        (key(&rcgen::PKCS_ECDSA_P521_SHA512), KeyKind::EcdsaP521),
        (key(&rcgen::PKCS_ED25519), KeyKind::Ed25519),
        (rsa_key(), KeyKind::Rsa),
    ] {
        let certificate = authority.issue(params(&["a.example"]), &key).compiled();
        assert_eq!(certificate.kind(), kind);
        assert_eq!((certificate.not_before(), certificate.not_after()), (1_577_836_800, 2_208_988_800));
        assert!(certificate.is_valid_at(1_577_836_800) && certificate.is_valid_at(2_208_988_800));
        assert!(!certificate.is_valid_at(1_577_836_799) && !certificate.is_valid_at(2_208_988_801));
    }
}

#[test]
fn names_are_those_of_the_alternative_name_else_the_common_name() {
    let authority = Authority::new("CA");
    let with = |names: &[&str], common: &str| {
        let mut params = params(names);
        params.distinguished_name.push(DnType::CommonName, common);
        let certificate = authority.issue(params, &KeyPair::generate().expect("a key")).compiled();
        (
            certificate.names().iter().map(|name| name.to_string()).collect::<Vec<_>>(),
            certificate.name().to_owned(),
        )
    };
    let (names, name) = with(&["B.example", "*.a.example", "b.example", "192.0.2.1"], "c.example");
    assert_eq!((names, name.as_str()), (vec!["b.example".to_owned(), "*.a.example".to_owned()], "b.example"));
    let (names, name) = with(&[], "C.example");
    assert_eq!((names, name.as_str()), (vec!["c.example".to_owned()], "c.example"));
    // No name of a host.
    let (names, name) = with(&["192.0.2.1"], "c.example");
    assert_eq!((names, name.as_str()), (vec![], "c.example"));
    let (names, name) = with(&[], "Edge of the World");
    assert_eq!((names, name.as_str()), (vec![], "Edge of the World"));
}

#[test]
fn only_names_and_wildcards_of_one_label_are_names() {
    for name in ["a", "a.example", "*.a.example", "a_b.example", "xn--bcher-kva.example", "1.2"] {
        assert!(is_dns_name(name), "{name}");
    }
    let long = format!("{}.example", "a".repeat(64));
    for name in
        ["", "*", "*.", ".a", "a.", "a..b", "a.*.b", "f*.a", "*.*.a", "a b", "ä.example", long.as_str()]
    {
        assert!(!is_dns_name(name), "{name}");
    }
}

#[test]
fn what_stands_in_a_files_place_is_named() {
    let Pair { chain, key } = Authority::new("CA").leaf(&["a.example"]);
    let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    let legacy = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nAAAA\n\
        -----END RSA PRIVATE KEY-----\n";
    let cut = &chain[..chain.len() / 2];
    let garbled = chain.replacen("MII", "M!!", 1);
    let hollow = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let hollow_key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    let request = "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n";
    for (chain, key, part, words) in [
        ("", &*key, Part::Chain, "is empty"),
        (&*key, &*key, Part::Chain, "holds a private key and no certificate"),
        (request, &*key, Part::Chain, "holds a request for a certificate and no certificate"),
        ("hello\n", &*key, Part::Chain, "is not PEM"),
        (cut, &*key, Part::Chain, "certificate 1 is damaged: its -----END line is missing"),
        (&*garbled, &*key, Part::Chain, "certificate 1 is damaged: it is not Base64"),
        (hollow, &*key, Part::Chain, "certificate 1 is not X.509"),
        (&*chain, " \n", Part::Key, "is empty"),
        (&*chain, &*chain, Part::Key, "holds a certificate and no private key"),
        (&*chain, encrypted, Part::Key, "is encrypted"),
        (&*chain, legacy, Part::Key, "is encrypted"),
        (&*chain, hollow_key, Part::Key, "is damaged, or of a kind"),
        (&*chain, &key.repeat(2), Part::Key, "holds more than one private key"),
        (&*chain, "\u{7}", Part::Key, "is not PEM"),
    ] {
        let (found, message) = refused(chain, key);
        assert_eq!(found, part, "{message}");
        assert!(message.starts_with(words), "{message}, not {words}");
    }
    let der = rustls::pki_types::pem::PemObject::from_pem_slice(chain.as_bytes()).expect("one");
    let (der, key): (rustls::pki_types::CertificateDer<'_>, _) = (der, key.as_bytes());
    let error = Certificate::new(Files { chain: &der, key, ocsp: None }).expect_err("DER");
    assert_eq!((error.part, error.message.as_str()), (Part::Chain, "is DER, not PEM"));
    let error = Certificate::new(Files { chain: chain.as_bytes(), key: &der, ocsp: None }).expect_err("DER");
    assert_eq!((error.part, error.message.as_str()), (Part::Key, "is DER, not PEM"));
    assert!(error.expected.contains("pkey"));
}

#[test]
fn chain_and_key_belong_together_with_the_leaf_first() {
    let authority = Authority::new("CA");
    let (one, other) = (authority.leaf(&["a.example"]), authority.leaf(&["b.example"]));
    assert_eq!(refused(&one.chain, &other.key), (Part::Key, "does not belong to the certificate".to_owned()));
    let upside_down = format!("{}{}", authority.pem(), one.chain);
    let (part, message) = refused(&upside_down, &one.key);
    assert_eq!(part, Part::Chain);
    assert!(message.contains("which is the second one"), "{message}");
    let whole = Pair { chain: format!("{}{}", one.chain, authority.pem()), key: one.key.clone() };
    assert_eq!(whole.compiled().bare.cert.len(), 2);
    // Both in one file, as haproxy has it.
    let both = format!("{}{}", one.key, one.chain);
    assert!(Certificate::new(Files { chain: both.as_bytes(), key: both.as_bytes(), ocsp: None }).is_ok());
}

#[test]
fn weak_keys_are_refused() {
    // `openssl req -x509 -newkey rsa:1024 -nodes -subj /CN=weak.example -days 36500`
    let key = Authority::new("CA").leaf(&["weak.example"]).key;
    assert_eq!(
        refused(include_str!("rsa1024.pem"), &key),
        (Part::Chain, "has an RSA key of 1024 bits, which is not supported".to_owned())
    );
}

#[test]
fn equal_are_those_of_the_same_bytes() {
    let authority = Authority::new("CA");
    let one = authority.leaf(&["a.example"]);
    assert_eq!(one.compiled(), one.compiled());
    assert_ne!(one.compiled(), authority.leaf(&["a.example"]).compiled());
    let mut longer = one.clone();
    longer.chain.push_str(authority.pem());
    assert_ne!(one.compiled(), longer.compiled());
}

#[test]
fn nothing_of_a_key_is_shown() {
    let pair = Authority::new("CA").leaf(&["a.example"]);
    let shown = format!("{:?}", pair.compiled());
    assert_eq!(shown, r#"Certificate { names: ["a.example"], kind: EcdsaP256, not_after: 2208988800, .. }"#);
}
