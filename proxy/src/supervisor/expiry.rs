//! Certificates that end soon, or have ended, are named in the log once a day: nobody has renewed them.

use std::time::Duration;

use crate::config::model::Config;
use crate::time::Time;
use crate::tls::review;

const DAY: Duration = Duration::from_secs(86_400);

/// When to look next.
#[derive(Debug)]
pub struct Expiry {
    next: Time,
}

impl Expiry {
    /// The configuration's own warnings have said it at the start.
    #[must_use]
    pub fn new(now: Time) -> Self {
        Self { next: now + DAY }
    }

    /// When `look` has something to do.
    #[must_use]
    pub const fn next_look(&self) -> Time {
        self.next
    }

    /// The remarks that are due at `now`, which is `unix_now` seconds since 1970; none before their time.
    pub fn look(&mut self, now: Time, config: &Config, unix_now: i64) -> Vec<String> {
        if now < self.next {
            return Vec::new();
        }
        self.next = now + DAY;
        let remarks = |(holder, certificate)| {
            let due = review::due(certificate, unix_now);
            due.into_iter().map(move |remark| {
                format!("certificate \"{}\" of {holder} {}", certificate.name(), remark.message)
            })
        };
        let crls = config.crls().filter_map(|(listener, crl, accepts_expired)| {
            let message = crl.due(unix_now, accepts_expired)?;
            Some(format!("the list of revoked certificates {message} (listener \"{listener}\")"))
        });
        config.certificates().flat_map(remarks).chain(crls).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::config::testing;
    use crate::tls::client::{self, ClientTls, Trust};
    use crate::tls::server::{MinVersion, ServerTls, Settings};
    use crate::tls::testing::{Authority, params};

    #[test]
    fn ends_are_named_once_a_day() {
        let authority = Authority::new("CA");
        let until = |day| {
            let mut params = params(&["a.example"]);
            params.not_after = rcgen::date_time_ymd(2026, 3, day);
            authority.issue(params, &rcgen::KeyPair::generate().expect("a key")).compiled()
        };
        let mut config = testing::config(&[]);
        let tls = ServerTls::new(Settings {
            certificates: vec![until(1), until(31)],
            min_version: MinVersion::Tls12,
            alpn: Vec::new(),
            client_auth: None,
            session_tickets: true,
            early_data: false,
            ticket_keys: vec![],
            handshake_timeout: DAY,
            max_handshakes: 1,
        });
        Arc::make_mut(&mut config.listeners[0]).tls = Some(Arc::new(tls.expect("sound")));
        let certificate = Some(until(2));
        let tls = ClientTls::new(client::Settings {
            server_name: None,
            trust: Trust::Anyone,
            certificate,
            alpn: Vec::new(),
        });
        Arc::make_mut(&mut config.upstreams[0]).tls = Some(Arc::new(tls.expect("sound")));

        let today = rcgen::date_time_ymd(2026, 2, 27).unix_timestamp();
        let start = Time::from_nanos(7);
        let mut expiry = Expiry::new(start);
        assert_eq!(expiry.next_look(), start + DAY);
        assert_eq!(expiry.look(start, &config, today), Vec::<String>::new(), "it has been said");
        let said = expiry.look(start + DAY, &config, today);
        assert_eq!(
            said,
            [
                "certificate \"a.example\" of listener \"main\" expires on 2026-03-01, in 2 days",
                "certificate \"a.example\" of upstream \"app\" expires on 2026-03-02, in 3 days",
            ]
        );
        assert_eq!(expiry.look(start + DAY, &config, today), Vec::<String>::new());
        assert_eq!(expiry.look(start + DAY * 2, &config, today + 86_400).len(), 2);
    }
}
