//! Responses as a responder writes them, for the certificate, for others and for nobody.

use x509_parser::prelude::FromDer as _;

use super::*;
use crate::tls::testing::{Authority, Response};

fn read_for(chain: &str, response: &[u8]) -> Result<Staple, TlsError> {
    let chain = crate::tls::pem::certificates(Part::Chain, chain.as_bytes()).expect("PEM");
    let (_, leaf) = X509Certificate::from_der(&chain[0]).expect("X.509");
    read(response, &leaf)
}

#[test]
fn what_a_response_says_of_the_certificate_is_read() {
    let leaf = Authority::new("CA").leaf(&["a.example"]);
    let (good, revoked, unknown) = (0x80, 0xa1, 0x82);
    for (status, is_good) in [(good, true), (revoked, false), (unknown, false)] {
        for is_sha1 in [true, false] {
            for has_version in [true, false] {
                let response = Response { status, is_sha1, has_version, ..Response::new(&leaf.chain) }.der();
                let staple = read_for(&leaf.chain, &response).expect("about it");
                // 2026-02-01 12:00:00.
                assert_eq!(staple, Staple { is_good, next_update: Some(1_769_947_200) });
            }
        }
    }
    let response = Response { next_update: None, ..Response::new(&leaf.chain) }.der();
    assert_eq!(read_for(&leaf.chain, &response), Ok(Staple { is_good: true, next_update: None }));
}

#[test]
fn one_of_several_may_be_meant() {
    let authority = Authority::new("CA");
    let (leaf, other) = (authority.leaf(&["a.example"]), authority.leaf(&["b.example"]));
    let response = Response { others: vec![other.chain.clone()], ..Response::new(&leaf.chain) }.der();
    assert!(read_for(&leaf.chain, &response).is_ok());
    assert!(read_for(&other.chain, &response).is_ok());
}

#[test]
fn what_is_not_for_the_certificate_is_refused() {
    let authority = Authority::new("CA");
    let (leaf, other) = (authority.leaf(&["a.example"]), authority.leaf(&["a.example"]));
    let response = Response::new(&leaf.chain).der();
    let refused = |response: &[u8]| read_for(&leaf.chain, response).expect_err("refused").message;
    assert_eq!(read_for(&other.chain, &response).expect_err("refused").message, "is for another certificate");
    assert_eq!(refused(b""), "is no OCSP response");
    assert_eq!(refused(b"-----BEGIN OCSP RESPONSE-----"), "is PEM, not DER");
    assert_eq!(refused(leaf.chain.as_bytes()), "is PEM, not DER");
    // tryLater.
    assert_eq!(refused(&[0x30, 3, 0x0a, 1, 3]), "is a responder's refusal to answer");
    for cut in 1..response.len() {
        assert!(read_for(&leaf.chain, &response[..cut]).is_err(), "cut at {cut}");
    }
    let mut state = 1_u32;
    for _ in 0..2000 {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let mut broken = response.clone();
        broken[state as usize % response.len()] ^= 1 << (state >> 29);
        // It ends for any input.
        let _ = read_for(&leaf.chain, &broken);
    }
}
