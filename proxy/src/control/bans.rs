//! The source of a ban: one IPv4 address or one IPv6 /64, as for the guard's other limits per source. A
//! client with one address of a /64 has all of them. Nothing wider: networks belong into `guard.deny`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use proxy_common::filter::Source;
use serde::{Deserialize, Serialize};

/// A source that is or can be banned. Written as `192.0.2.7` or `2001:db8:7:7::/64`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct BanSource(
    /// `filter::Source::key`
    u64,
);

/// A ban that holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ban {
    /// Whose packets are dropped.
    pub address: BanSource,
    /// Milliseconds until it ends by itself.
    pub remaining_ms: u64,
}

impl BanSource {
    /// Of an address that sends packets: an IPv6 one stands for its /64.
    ///
    /// # Errors
    /// A sentence about an address that is nobody's.
    pub fn new(address: IpAddr) -> Result<Self, String> {
        let nobody = |kind| Err(format!("{address} is {kind}, which sends nothing"));
        let source = match address.to_canonical() {
            address if address.is_unspecified() => return nobody("the unspecified address"),
            address if address.is_multicast() => return nobody("a multicast address"),
            IpAddr::V4(address) if address.is_broadcast() => return nobody("the broadcast address"),
            IpAddr::V4(address) => Source::V4(address.to_bits()),
            IpAddr::V6(address) => Source::V6((address.to_bits() >> 64) as u64),
        };
        Ok(Self(source.key()))
    }

    /// From a key of the guard's table.
    #[must_use]
    pub const fn of_key(key: u64) -> Self {
        Self(key)
    }

    /// Its key in the guard's table.
    #[must_use]
    pub const fn key(self) -> u64 {
        self.0
    }

    /// Everything that the ban is about.
    #[must_use]
    pub fn network(self) -> IpNet {
        match Source::of_key(self.0) {
            Source::V4(address) => Ipv4Net::from(Ipv4Addr::from_bits(address)).into(),
            Source::V6(leading) => {
                // A prefix length of 64 is always valid.
                Ipv6Net::new(Ipv6Addr::from_bits(u128::from(leading) << 64), 64).unwrap_or_default().into()
            }
        }
    }
}

impl fmt::Display for BanSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.network() {
            IpNet::V4(net) => write!(f, "{}", net.addr()),
            IpNet::V6(net) => write!(f, "{net}"),
        }
    }
}

impl FromStr for BanSource {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Self::new(address);
        }
        let Ok(net) = text.parse::<IpNet>() else {
            return Err("not an address; write one such as 192.0.2.7 or 2001:db8::7".to_owned());
        };
        match (net, net.prefix_len()) {
            (IpNet::V4(_), 32) | (IpNet::V6(_), 64) => Self::new(net.network()),
            (IpNet::V6(_), 65..) => Err(format!(
                "a ban of IPv6 is of a whole /64; write {}/64",
                Ipv6Addr::from_bits(u128::from_be_bytes(octets(net)) >> 64 << 64)
            )),
            (IpNet::V4(_), _) => {
                Err("a ban is of one IPv4 address; networks belong into guard.deny".to_owned())
            }
            (IpNet::V6(_), _) => {
                Err("a ban is of one IPv6 /64; wider networks belong into guard.deny".to_owned())
            }
        }
    }
}

fn octets(net: IpNet) -> [u8; 16] {
    match net.network() {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

impl From<BanSource> for String {
    fn from(source: BanSource) -> Self {
        source.to_string()
    }
}

impl TryFrom<String> for BanSource {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_address_stands_for_itself_or_its_64() {
        for (written, shown) in [
            ("192.0.2.7", "192.0.2.7"),
            ("192.0.2.7/32", "192.0.2.7"),
            ("::ffff:192.0.2.7", "192.0.2.7"),
            ("2001:db8:7:7:1:2:3:4", "2001:db8:7:7::/64"),
            ("2001:db8:7:7::/64", "2001:db8:7:7::/64"),
            ("::1", "::/64"),
            ("127.0.0.1", "127.0.0.1"),
        ] {
            assert_eq!(
                written.parse::<BanSource>().map(|source| source.to_string()),
                Ok(shown.to_owned()),
                "{written}"
            );
        }
    }

    #[test]
    fn what_is_no_source_says_why() {
        for (written, words) in [
            ("example.com", "not an address"),
            ("", "not an address"),
            ("192.0.2.0/24", "guard.deny"),
            ("2001:db8::/48", "guard.deny"),
            ("2001:db8:7:7:8::1/128", "2001:db8:7:7::/64"),
            ("0.0.0.0", "unspecified"),
            ("::", "unspecified"),
            ("224.0.0.1", "multicast"),
            ("ff02::1", "multicast"),
            ("255.255.255.255", "broadcast"),
        ] {
            let error = written.parse::<BanSource>().expect_err(written);
            assert!(error.contains(words), "{written}: {error}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_is_parsed_and_covers_the_address(bits: u128, v4: bool) {
            let address = if v4 { IpAddr::V4((bits as u32).into()) } else { IpAddr::V6(bits.into()) };
            if let Ok(source) = BanSource::new(address) {
                prop_assert_eq!(source.to_string().parse::<BanSource>(), Ok(source));
                prop_assert_eq!(BanSource::of_key(source.key()), source);
                prop_assert!(source.network().contains(&address.to_canonical()));
            }
        }
    }
}
