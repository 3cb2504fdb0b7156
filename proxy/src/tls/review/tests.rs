//! Remarks on a certificate: their time and their file.

use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, KeyPair, date_time_ymd};

use super::*;
use crate::tls::certificate::Files;
use crate::tls::testing::{Authority, Pair, Response, params};

fn issue(authority: &Authority, params: CertificateParams) -> Pair {
    authority.issue(params, &KeyPair::generate().expect("a key"))
}

fn messages(remarks: &[Remark]) -> Vec<&str> {
    remarks.iter().map(|remark| remark.message.as_str()).collect()
}

/// Seconds since 1970 of a day's first moment.
fn day(year: i32, month: u8, day: u8) -> i64 {
    date_time_ymd(year, month, day).unix_timestamp()
}

#[test]
fn a_usual_certificate_needs_no_remark() {
    let authority = Authority::new("CA");
    let mut params = params(&["a.example"]);
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let mut pair = issue(&authority, params);
    pair.chain.push_str(authority.pem());
    let certificate = pair.compiled();
    assert_eq!(certificate.remarks(), []);
    assert_eq!(due(&certificate, day(2026, 7, 1)), []);
}

#[test]
fn its_time_is_remarked() {
    let mut params = params(&["a.example"]);
    (params.not_before, params.not_after) = (date_time_ymd(2026, 1, 1), date_time_ymd(2026, 3, 1));
    let certificate = issue(&Authority::new("CA"), params).compiled();
    for (now, expected) in [
        (day(2025, 12, 31), "is not valid before 2026-01-01: until then clients refuse it"),
        (day(2026, 1, 1), ""),
        (day(2026, 2, 15), ""),
        (day(2026, 2, 15) + 1, "expires on 2026-03-01, in 13 days"),
        (day(2026, 2, 27) + 1, "expires on 2026-03-01, in 1 day"),
        (day(2026, 3, 1), "expires on 2026-03-01, in less than a day"),
        (day(2026, 3, 1) + 1, "has expired on 2026-03-01, today: clients refuse it"),
        (day(2026, 3, 5), "has expired on 2026-03-01, 4 days ago: clients refuse it"),
    ] {
        let remarks = due(&certificate, now);
        assert_eq!(messages(&remarks).join("|"), expected);
        assert!(remarks.iter().all(|remark| remark.part == Part::Chain));
    }
}

#[test]
fn the_end_of_an_intermediate_is_remarked() {
    let (authority, root) = (Authority::new("CA"), Authority::new("Root"));
    let mut intermediate = params(&[]);
    intermediate.not_after = date_time_ymd(2026, 1, 1);
    let mut pair = authority.leaf(&["a.example"]);
    pair.chain.push_str(&issue(&root, intermediate).chain);
    let remarks = due(&pair.compiled(), day(2026, 1, 2));
    assert_eq!(
        messages(&remarks),
        ["certificate 2 has expired on 2026-01-01: clients may not find another way to the root"]
    );
    assert_eq!(due(&pair.compiled(), day(2025, 12, 31)), []);
}

#[test]
fn what_clients_will_refuse_is_remarked() {
    let authority = Authority::new("CA");
    let remarks = |pair: &Pair| messages(pair.compiled().remarks()).join("|");
    assert!(remarks(&issue(&authority, params(&["192.0.2.1"]))).starts_with("has no DNS name"));
    let mut only_client = params(&["a.example"]);
    only_client.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    assert!(remarks(&issue(&authority, only_client)).starts_with("is not for servers"));
    let mut any = params(&["a.example"]);
    any.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any];
    assert_eq!(remarks(&issue(&authority, any)), "");

    let mut out_of_order = authority.leaf(&["a.example"]);
    out_of_order.chain.push_str(Authority::new("Another").pem());
    out_of_order.chain.push_str(authority.pem());
    assert!(
        remarks(&out_of_order)
            .starts_with("is out of order: certificate 1 was not issued by the one below it")
    );
}

/// rcgen does not sign with SHA-1. `openssl req -x509 -sha1` for the CA, then `openssl x509 -req -sha1 -CA
/// …`: leaf and CA; both are in the chain.
#[test]
fn sha1_is_remarked_but_of_a_root() {
    let chain = crate::tls::pem::certificates(Part::Chain, include_bytes!("sha1.pem")).expect("PEM");
    let parse =
        |der| <X509Certificate<'_> as x509_parser::prelude::FromDer<_>>::from_der(der).expect("X.509").1;
    let parsed: Vec<_> = chain.iter().map(|der| parse(der)).collect();
    let remarks = lasting(&parsed, &["a.example".into()]);
    assert_eq!(messages(&remarks), ["certificate 1 is signed with SHA-1, which clients refuse"]);
}

#[test]
fn a_staple_that_is_stale_or_not_good_is_remarked() {
    let pair = Authority::new("CA").leaf(&["a.example"]);
    let with = |response: Response| {
        let response = response.der();
        Certificate::new(Files { ocsp: Some(&response), ..pair.files() }).expect("sound")
    };
    let certificate = with(Response::new(&pair.chain));
    assert_eq!(due(&certificate, day(2026, 2, 1)), []);
    let remarks = due(&certificate, day(2026, 2, 2));
    assert_eq!(
        messages(&remarks),
        ["was to be replaced until 2026-02-01, and is not shown to clients any more"]
    );
    assert_eq!(remarks[0].part, Part::Ocsp);
    let remarks = due(&with(Response { status: 0xa1, ..Response::new(&pair.chain) }), day(2026, 2, 1));
    assert_eq!(messages(&remarks), ["says that the certificate is revoked or unknown"]);
}

/// The staple for rustls, as long as it holds.
#[test]
fn a_staple_is_shown_while_it_holds() {
    let pair = Authority::new("CA").leaf(&["a.example"]);
    let response = Response::new(&pair.chain).der();
    let certificate = Certificate::new(Files { ocsp: Some(&response), ..pair.files() }).expect("sound");
    let shown = |now| certificate.certified(|| now).ocsp.as_deref();
    assert_eq!(shown(Some(day(2026, 2, 1))), Some(&response[..]));
    assert_eq!(shown(Some(day(2026, 2, 2))), None);
    assert_eq!(shown(None), None);
    let forever = Response { next_update: None, ..Response::new(&pair.chain) }.der();
    let certificate = Certificate::new(Files { ocsp: Some(&forever), ..pair.files() }).expect("sound");
    assert!(certificate.certified(|| None).ocsp.is_some());
    assert_ne!(certificate, Certificate::new(pair.files()).expect("sound"));
}
