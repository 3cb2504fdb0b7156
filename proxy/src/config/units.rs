//! Values with units as TOML strings: durations ("250ms"), sizes ("16KiB"), rates ("100/s"), CPU lists
//! ("2-15,18") and networks ("10.0.0.0/8"). Each parser returns an error as a sentence; the caller says where
//! it stands.

use std::net::IpAddr;
use std::num::NonZero;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};

/// Highest CPU number accepted (the kernel's own limit, CONFIG_NR_CPUS, is 8192).
pub const CPU_MAX: usize = 8191;

/// The form of a duration, for messages.
pub const DURATION_FORM: &str = "a duration such as \"250ms\", \"30s\" or \"5m\"";
/// The form of a size, for messages.
pub const SIZE_FORM: &str = "a size such as \"512B\", \"16KiB\" or \"1MiB\"";
/// The form of a rate, for messages.
pub const RATE_FORM: &str = "a rate such as \"100/s\"";
/// The form of a rate of bytes, for messages.
pub const BYTE_RATE_FORM: &str = "bytes per second such as \"100B/s\" or \"4KiB/s\", or \"off\"";
/// The form of a CPU list, for messages.
pub const CPUS_FORM: &str = "logical CPU numbers such as \"2-15,18\"";
/// The form of a network, for messages.
pub const NETWORK_FORM: &str = "an address or a network such as \"192.0.2.0/24\" or \"2001:db8::/32\"";

/// Text as messages show it: in quotes, escaped, and cut where it is long.
#[must_use]
pub fn quote(text: &str) -> String {
    const CHARS_MAX: usize = 60;
    match text.char_indices().nth(CHARS_MAX) {
        Some((cut, _)) => format!("{:?}…", &text[..cut]),
        None => format!("{text:?}"),
    }
}

/// Splits "250ms" into 250 and "ms"; the number is decimal digits only.
fn number_and_unit(text: &str) -> Result<(u64, &str), String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    if number.is_empty() {
        return Err(format!("{} does not begin with a whole number", quote(text)));
    }
    let number = number.parse().map_err(|_| format!("{} is too large", quote(number)))?;
    Ok((number, unit))
}

/// "0us", "250ms", "30s", "5m", "1h", "1d".
///
/// # Errors
/// A sentence about the mistake.
pub fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = number_and_unit(text)?;
    let nanos_per_unit: u64 = match unit {
        "ns" => 1,
        "us" | "µs" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        "d" => 86_400_000_000_000,
        "" => return Err(format!("{} has no unit", quote(text))),
        other => return Err(format!("{} is not a unit of time (ns, us, ms, s, m, h, d)", quote(other))),
    };
    let nanos = number.checked_mul(nanos_per_unit).ok_or_else(|| format!("{} is too long", quote(text)))?;
    Ok(Duration::from_nanos(nanos))
}

/// "0", "512B", "16KiB", "64MiB", "1GiB", "1TiB"; a number alone is bytes.
///
/// # Errors
/// A sentence about the mistake.
pub fn size(text: &str) -> Result<u64, String> {
    let (number, unit) = number_and_unit(text)?;
    let bytes_per_unit: u64 = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        other => return Err(format!("{} is not a unit of size (B, KiB, MiB, GiB, TiB)", quote(other))),
    };
    number.checked_mul(bytes_per_unit).ok_or_else(|| format!("{} is too large", quote(text)))
}

/// "100/s": a whole number of events per second, at least one.
///
/// # Errors
/// A sentence about the mistake.
pub fn rate(text: &str) -> Result<u32, String> {
    let (number, unit) = number_and_unit(text)?;
    match (u32::try_from(number), unit) {
        (_, "") => Err(format!("{} has no unit", quote(text))),
        (Ok(0), "/s") => Err("a rate of 0 lets nothing through".to_owned()),
        (Ok(per_second), "/s") => Ok(per_second),
        (Err(_), "/s") => Err(format!("{} is too high", quote(text))),
        (_, other) => Err(format!("{} is not a unit of rate (/s)", quote(other))),
    }
}

/// "100B/s", "4KiB/s"; `None` for "off" and "0".
///
/// # Errors
/// A sentence about the mistake.
pub fn byte_rate(text: &str) -> Result<Option<NonZero<u32>>, String> {
    if text == "off" {
        return Ok(None);
    }
    let bytes = match text.strip_suffix("/s") {
        Some(bytes) => size(bytes)?,
        None if size(text) == Ok(0) => 0,
        None => return Err(format!("{} is not per second", quote(text))),
    };
    u32::try_from(bytes).map(NonZero::new).map_err(|_| format!("{} is too high", quote(text)))
}

/// "2-15,18": CPU numbers in the order written, each once.
///
/// # Errors
/// A sentence about the mistake.
pub fn cpus(text: &str) -> Result<Vec<usize>, String> {
    let mut cpus = Vec::new();
    let mut seen = [false; CPU_MAX + 1];
    for part in text.split(',') {
        let part = part.trim();
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (cpu(first)?, cpu(last)?);
        if first > last {
            return Err(format!("the range {} runs backwards", quote(part)));
        }
        for (number, seen) in seen.iter_mut().enumerate().take(last + 1).skip(first) {
            if std::mem::replace(seen, true) {
                return Err(format!("CPU {number} is listed twice"));
            }
            cpus.push(number);
        }
    }
    Ok(cpus)
}

fn cpu(text: &str) -> Result<usize, String> {
    let text = text.trim();
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(format!("{} is not a CPU number", quote(text)));
    }
    text.parse()
        .ok()
        .filter(|number| *number <= CPU_MAX)
        .ok_or_else(|| format!("CPU {} is above {CPU_MAX}", quote(text)))
}

/// "192.0.2.0/24", "2001:db8::/32", or an address alone. IPv4-mapped IPv6 becomes IPv4, as everywhere in
/// Sluice.
///
/// Host bits are an error and not cut off: "10.1.2.3/8" in a deny list could mean one host or sixteen
/// million.
///
/// # Errors
/// A sentence about the mistake.
pub fn network(text: &str) -> Result<IpNet, String> {
    let network = match text.split_once('/') {
        None => text
            .parse::<IpAddr>()
            .map(IpNet::from)
            .map_err(|_| format!("{} is not an address", quote(text)))?,
        Some((address, length)) => {
            let address: IpAddr =
                address.parse().map_err(|_| format!("{} is not an address", quote(address)))?;
            let length_max = if address.is_ipv4() { 32 } else { 128 };
            let wrong_length = || format!("{} is not a prefix length from 0 to {length_max}", quote(length));
            let digits = !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit());
            let length = length.parse().ok().filter(|_| digits).ok_or_else(wrong_length)?;
            IpNet::new(address, length).map_err(|_| wrong_length())?
        }
    };
    if network != network.trunc() {
        let network_alone = network.trunc();
        let host = network.addr();
        return Err(format!(
            "{} has bits set beyond its prefix; write {network_alone} or {host}",
            quote(text)
        ));
    }
    Ok(canonical_network(network))
}

/// An IPv4-mapped IPv6 network as the IPv4 network it stands for.
fn canonical_network(network: IpNet) -> IpNet {
    let IpNet::V6(v6) = network else { return network };
    match (v6.addr().to_ipv4_mapped(), v6.prefix_len().checked_sub(96)) {
        (Some(address), Some(length)) => Ipv4Net::new(address, length).map_or(network, IpNet::V4),
        _ => network,
    }
}

/// A duration as one would write it: the largest unit that divides it.
#[must_use]
pub fn show_duration(duration: Duration) -> String {
    const UNITS: [(u128, &str); 6] = [
        (86_400_000_000_000, "d"),
        (3_600_000_000_000, "h"),
        (60_000_000_000, "m"),
        (1_000_000_000, "s"),
        (1_000_000, "ms"),
        (1_000, "us"),
    ];
    let nanos = duration.as_nanos();
    let unit = UNITS.iter().find(|(length, _)| nanos > 0 && nanos.is_multiple_of(*length));
    unit.map_or_else(|| format!("{nanos}ns"), |(length, name)| format!("{}{name}", nanos / length))
}

/// A size as one would write it: the largest unit that divides it.
#[must_use]
pub fn show_size(bytes: u64) -> String {
    const UNITS: [(u64, &str); 4] = [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    let unit = UNITS.iter().find(|(length, _)| bytes > 0 && bytes.is_multiple_of(*length));
    unit.map_or_else(|| format!("{bytes}B"), |(length, name)| format!("{}{name}", bytes / length))
}

#[cfg(test)]
mod tests;
