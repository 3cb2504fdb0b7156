//! Names, key kinds and validity, each against the others.

use rustls::SignatureScheme as Scheme;
use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;

use super::*;
use crate::tls::testing::{Authority, key, params, rsa_key};

#[derive(Debug)]
struct Fixed(u64);

impl TimeProvider for Fixed {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(std::time::Duration::from_secs(self.0)))
    }
}

/// 2026-07-01.
const NOW: u64 = 1_782_864_000;
const EVERY: &[Scheme] =
    &[Scheme::RSA_PSS_SHA256, Scheme::ECDSA_NISTP256_SHA256, Scheme::ECDSA_NISTP384_SHA384, Scheme::ED25519];

fn resolver(certificates: &[Arc<Certificate>]) -> Resolver {
    Resolver::new(certificates, Arc::new(Fixed(NOW)))
}

#[track_caller]
fn assert_chosen(
    resolver: &Resolver,
    name: Option<&str>,
    schemes: &[Scheme],
    expected: Option<&Arc<Certificate>>,
) {
    let chosen = resolver.choose(name, schemes);
    assert_eq!(chosen, expected, "{name:?} {schemes:?}");
}

#[test]
fn the_name_chooses_exact_before_wildcard_before_the_first() {
    let authority = Authority::new("CA");
    let first = authority.leaf(&["first.example"]).compiled();
    let exact = authority.leaf(&["a.example.com", "example.com"]).compiled();
    let wildcard = authority.leaf(&["*.example.com"]).compiled();
    let resolver = resolver(&[first.clone(), wildcard.clone(), exact.clone()]);
    for (name, expected) in [
        (Some("a.example.com"), &exact),
        (Some("A.EXAMPLE.com."), &exact),
        (Some("example.com"), &exact),
        (Some("b.example.com"), &wildcard),
        // A wildcard is for one label.
        (Some("a.b.example.com"), &first),
        (Some("*.example.com"), &wildcard),
        (Some(".example.com"), &wildcard),
        (Some("unknown.example"), &first),
        (Some("com"), &first),
        (Some(""), &first),
        (None, &first),
    ] {
        assert_chosen(&resolver, name, EVERY, Some(expected));
    }
}

#[test]
fn what_a_client_can_verify_chooses_between_key_kinds() {
    let authority = Authority::new("CA");
    let name = &["example.com"];
    let rsa = authority.issue(params(name), &rsa_key()).compiled();
    let p384 = authority.issue(params(name), &key(&rcgen::PKCS_ECDSA_P384_SHA384)).compiled();
    let p256 = authority.leaf(name).compiled();
    let ed25519 = authority.issue(params(name), &key(&rcgen::PKCS_ED25519)).compiled();
    let resolver = resolver(&[rsa.clone(), p384.clone(), p256.clone(), ed25519.clone()]);
    for asked in [Some("example.com"), None] {
        for (schemes, expected) in [
            (EVERY, Some(&p256)),
            (&[Scheme::RSA_PSS_SHA256, Scheme::ECDSA_NISTP384_SHA384][..], Some(&p384)),
            (&[Scheme::RSA_PKCS1_SHA256], Some(&rsa)),
            (&[Scheme::ED25519], Some(&ed25519)),
            (&[Scheme::RSA_PKCS1_SHA1], None),
            (&[], None),
        ] {
            assert_chosen(&resolver, asked, schemes, expected);
        }
    }
}

#[test]
fn one_that_holds_goes_before_one_that_does_not() {
    let authority = Authority::new("CA");
    let issue = |name: &str, from: i32, to: i32| {
        let mut params = params(&[name]);
        (params.not_before, params.not_after) =
            (rcgen::date_time_ymd(from, 1, 1), rcgen::date_time_ymd(to, 1, 1));
        authority.issue(params, &rcgen::KeyPair::generate().expect("a key")).compiled()
    };
    let expired = issue("a.example.com", 2020, 2026);
    let future = issue("a.example.com", 2027, 2030);
    let holds = issue("a.example.com", 2026, 2027);
    let wildcard = issue("*.example.com", 2020, 2040);
    let all = [expired.clone(), future.clone(), holds.clone(), wildcard.clone()];
    assert_chosen(&resolver(&all), Some("a.example.com"), EVERY, Some(&holds));
    assert_chosen(&resolver(&all), None, EVERY, Some(&holds));
    assert_chosen(
        &resolver(&[expired.clone(), wildcard.clone()]),
        Some("a.example.com"),
        EVERY,
        Some(&wildcard),
    );
    // Better than none: a client that does not look at the dates gets in.
    assert_chosen(&resolver(&[expired.clone(), future]), Some("a.example.com"), EVERY, Some(&expired));
    // Another name's does not fit.
    let other = issue("other.example", 2020, 2040);
    assert_chosen(&resolver(&[other, expired.clone()]), Some("a.example.com"), EVERY, Some(&expired));
    let elsewhen = Resolver::new(&all, Arc::new(Fixed(NOW - 200 * 86_400)));
    assert_chosen(&elsewhen, Some("a.example.com"), EVERY, Some(&expired));
}
