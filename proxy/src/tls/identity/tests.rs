//! The forwarded identity of a client, and attempts of a certificate to say more than that.

use proptest::prelude::*;
use rcgen::{CertificateParams, DistinguishedName, DnType, DnValue, KeyPair, SanType};

use super::*;

/// Of a certificate with this subject and these alternative names, without the hash.
fn said(subject: &[(DnType, &str)], names: Vec<SanType>) -> String {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    for (kind, value) in subject {
        params.distinguished_name.push(kind.clone(), DnValue::Utf8String((*value).to_owned()));
    }
    params.subject_alt_names = names;
    let certificate = params.self_signed(&KeyPair::generate().expect("a key")).expect("signed");
    let value = forwarded(certificate.der());
    let hash = digest::digest(&digest::SHA256, certificate.der());
    let hash: String = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    value.strip_prefix(&format!("Hash={hash};")).expect("the hash comes first").to_owned()
}

fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().expect("ASCII"))
}

fn uri(name: &str) -> SanType {
    SanType::URI(name.try_into().expect("ASCII"))
}

#[test]
fn it_reads_like_envoys() {
    let subject = [
        (DnType::CountryName, "US"),
        (DnType::OrganizationName, "Acme, Inc."),
        (DnType::CommonName, "client one"),
    ];
    let names = vec![dns("a.example"), uri("spiffe://a.example/web"), dns("b.example")];
    let subject_said = r#"Subject="CN=client one,O=Acme\2C Inc.,C=US""#;
    assert_eq!(
        said(&subject, names),
        format!("{subject_said};URI=spiffe://a.example/web;DNS=a.example;DNS=b.example")
    );
    assert_eq!(said(&[], Vec::new()), r#"Subject="""#);
}

#[test]
fn what_could_end_a_value_is_quoted_or_written_as_a_number() {
    assert_eq!(said(&[(DnType::CommonName, r#" a";b\ "#)], Vec::new()), r#"Subject="CN=\20a\22\3Bb\5C\20""#);
    assert_eq!(
        said(&[(DnType::CommonName, "#ä\r\nX: y")], Vec::new()),
        r#"Subject="CN=\23\C3\A4\0D\0AX: y""#
    );
    let names = vec![uri("urn:a;b=c,d"), uri("urn:\"\\\r\n e"), dns("a,b")];
    assert_eq!(said(&[], names), r#"Subject="";URI="urn:a;b=c,d";URI=urn:%22%5C%0D%0A%20e;DNS="a,b""#);
}

#[test]
fn an_attribute_without_a_name_is_written_by_its_number() {
    let kind = DnType::CustomDnType(vec![1, 2, 3, 4]);
    assert_eq!(said(&[(kind.clone(), "ab")], Vec::new()), r#"Subject="1.2.3.4=#0c026162""#);
    let long = "a".repeat(300);
    let expected = format!(r#"Subject="1.2.3.4=#0c82012c{}""#, "61".repeat(300));
    assert_eq!(said(&[(kind, &long)], Vec::new()), expected);
}

#[test]
fn a_value_has_its_bound() {
    let names: Vec<_> = (0..500).map(|number| dns(&format!("{number}.example"))).collect();
    let value = said(&[(DnType::CommonName, "a")], names);
    assert!(value.len() <= VALUE_BYTES_MAX && value.len() > VALUE_BYTES_MAX - 100, "{}", value.len());
    assert!(value.contains(";DNS=0.example;DNS=1.example;"));
    let long = "a".repeat(VALUE_BYTES_MAX);
    assert_eq!(
        said(&[(DnType::CommonName, &long)], vec![dns("a.example")]).strip_prefix("DNS="),
        Some("a.example")
    );
}

#[test]
fn what_is_no_certificate_has_a_hash() {
    assert_eq!(forwarded(b""), "Hash=e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
}

/// Splits a value as its readers do: at `;` outside of quotation marks, where a backslash takes the next
/// character's meaning away.
fn elements(value: &str) -> Vec<String> {
    let (mut elements, mut is_quoted, mut letters) = (vec![String::new()], false, value.chars());
    while let Some(letter) = letters.next() {
        let element = elements.last_mut().expect("one");
        match letter {
            '\\' if is_quoted => element.extend([letter].into_iter().chain(letters.next())),
            '"' => is_quoted = !is_quoted,
            ';' | ',' if !is_quoted => elements.push(String::new()),
            _ => element.push(letter),
        }
    }
    assert!(!is_quoted);
    elements
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn nothing_in_a_certificate_makes_another_element(subject in "\\PC{0,20}|[\"\\\\;,=\r\n\
        ]{0,8}", name in "[ -~\r\n]{0,12}|[\"\\\\;,=]{1,6}") {
        let value = said(&[(DnType::CommonName, &subject)], vec![uri(&name), dns(&name)]);
        prop_assert!(value.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' '), "{}", value);
        let elements = elements(&value);
        prop_assert_eq!(elements.len(), 3, "{}", value);
        for (element, key) in elements.iter().zip(["Subject=CN=", "URI=", "DNS="]) {
            prop_assert!(element.starts_with(key), "{}", value);
        }
    }
}
