//! Remarks on a certificate that is legal and probably not meant: clients will not like it, now or soon.

use std::fmt::Write as _;

use x509_parser::certificate::X509Certificate;
use x509_parser::time::ASN1Time;

use super::Part;
use super::certificate::Certificate;

const DAY: i64 = 86_400;
/// From then on a certificate's end is warned of: it should have been renewed.
const SOON: i64 = 14 * DAY;

/// One remark, about the file that it is to be found in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remark {
    /// Which file.
    pub part: Part,
    /// In one sentence without a full stop; the file is its subject.
    pub message: String,
}

impl Remark {
    fn new(part: Part, message: impl Into<String>) -> Self {
        Self { part, message: message.into() }
    }
}

/// Remarks that hold at any time.
pub(super) fn lasting(chain: &[X509Certificate<'_>], names: &[Box<str>]) -> Vec<Remark> {
    let mut remarks = Vec::new();
    let leaf = &chain[0];
    if names.is_empty() {
        remarks
            .push(Remark::new(Part::Chain, "has no DNS name, so no client that looks at names accepts it"));
    }
    if let Ok(Some(usage)) = leaf.extended_key_usage()
        && !(usage.value.any || usage.value.server_auth)
    {
        remarks
            .push(Remark::new(Part::Chain, "is not for servers (extended key usage), so clients refuse it"));
    }
    for (index, pair) in chain.windows(2).enumerate() {
        if pair[0].issuer().as_raw() != pair[1].subject().as_raw() {
            let message = format!(
                "is out of order: certificate {} was not issued by the one below it, and some clients cannot \
                 put that right",
                index + 1
            );
            remarks.push(Remark::new(Part::Chain, message));
            break;
        }
    }
    for (index, certificate) in chain.iter().enumerate() {
        // Nobody verifies the signature of a root.
        let is_root = certificate.issuer().as_raw() == certificate.subject().as_raw();
        if !is_root && let Some(hash) = weak_hash(certificate) {
            let message = format!("certificate {} is signed with {hash}, which clients refuse", index + 1);
            remarks.push(Remark::new(Part::Chain, message));
        }
    }
    remarks
}

fn weak_hash(certificate: &X509Certificate<'_>) -> Option<&'static str> {
    match certificate.signature_algorithm.algorithm.to_id_string().as_str() {
        "1.2.840.113549.1.1.5" | "1.2.840.10045.4.1" => Some("SHA-1"),
        "1.2.840.113549.1.1.4" | "1.2.840.113549.1.1.2" => Some("MD5"),
        _ => None,
    }
}

/// Remarks that are due at `now`, seconds since 1970.
#[must_use]
pub fn due(certificate: &Certificate, now: i64) -> Vec<Remark> {
    let mut remarks = Vec::new();
    let (first, last) = (certificate.not_before(), certificate.not_after());
    if now > last {
        remarks.push(Remark::new(
            Part::Chain,
            format!("has expired on {}, {}: clients refuse it", date(last), ago(now - last)),
        ));
    } else if now < first {
        remarks.push(Remark::new(
            Part::Chain,
            format!("is not valid before {}: until then clients refuse it", date(first)),
        ));
    } else if last - now < SOON {
        remarks.push(Remark::new(Part::Chain, format!("expires on {}, in {}", date(last), days(last - now))));
    }
    if let Some((index, last)) = certificate.intermediate_end()
        && now > last
    {
        let message = format!(
            "certificate {} has expired on {}: clients may not find another way to the root",
            index + 1,
            date(last)
        );
        remarks.push(Remark::new(Part::Chain, message));
    }
    if let Some(staple) = certificate.staple() {
        if !staple.is_good {
            remarks.push(Remark::new(Part::Ocsp, "says that the certificate is revoked or unknown"));
        }
        if let Some(end) = staple.next_update.filter(|end| now > *end) {
            let message =
                format!("was to be replaced until {}, and is not shown to clients any more", date(end));
            remarks.push(Remark::new(Part::Ocsp, message));
        }
    }
    remarks
}

/// The day of a moment, in seconds since 1970 and UTC, as 2026-01-31.
#[must_use]
pub fn date(seconds: i64) -> String {
    let Ok(time) = ASN1Time::from_timestamp(seconds) else { return "a day out of this calendar".to_owned() };
    let time = time.to_datetime();
    let mut text = String::new();
    let _ = write!(text, "{:04}-{:02}-{:02}", time.year(), u8::from(time.month()), time.day());
    text
}

fn ago(seconds: i64) -> String {
    if seconds < DAY { "today".to_owned() } else { format!("{} ago", days(seconds)) }
}

fn days(seconds: i64) -> String {
    match seconds / DAY {
        0 => "less than a day".to_owned(),
        1 => "1 day".to_owned(),
        days => format!("{days} days"),
    }
}

#[cfg(test)]
mod tests;
