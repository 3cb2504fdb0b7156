//! Suggestions for values that are wrong in a usual way: a number without its unit, a unit by another name, a
//! word for a boolean, a string in place of a list. The form of each suggestion would be accepted.

use std::net::{IpAddr, SocketAddr};

use toml::de::DeValue;

use super::units;

/// Longer text is not worth repeating.
const SHOWN_BYTES_MAX: usize = 40;

/// Words of other proxies and tools, each with ours.
const WORDS: &[(&str, &str)] = &[
    ("warning", "warn"),
    ("err", "error"),
    ("crit", "error"),
    ("critical", "error"),
    ("fatal", "error"),
    ("notice", "info"),
    ("verbose", "debug"),
    ("native", "driver"),
    ("drv", "driver"),
    ("offload", "driver"),
    ("skb", "generic"),
    ("least_conn", "least-request"),
    ("leastconn", "least-request"),
    ("least-connections", "least-request"),
    ("least_request", "least-request"),
    ("rr", "round-robin"),
    ("wrr", "round-robin"),
    ("ewma", "p2c-ewma"),
    ("peak_ewma", "p2c-ewma"),
    ("ip_hash", "maglev"),
    ("source", "maglev"),
    ("ring_hash", "maglev"),
    ("hash", "maglev"),
    ("tlsv1.2", "1.2"),
    ("tls1.2", "1.2"),
    ("tlsv1.3", "1.3"),
    ("tls1.3", "1.3"),
    ("http/1.1", "http1"),
    ("http2", "h2"),
    ("ssl", "https"),
    ("tls", "https"),
    ("sni", "tls-passthrough"),
    ("stream", "tcp"),
];

/// For a word that is known elsewhere: ours, if it is one of `known`.
pub(super) fn for_word<'w>(text: &str, known: &[&'w str]) -> Option<&'w str> {
    let text = text.to_ascii_lowercase();
    let meant = WORDS.iter().filter(|(word, _)| *word == text);
    meant.filter_map(|(_, ours)| known.iter().find(|word| *word == ours)).copied().next()
}

/// For a value of another type than `form` says.
pub(super) fn for_type(value: &DeValue<'_>, form: &str) -> Option<String> {
    match value {
        DeValue::Integer(number) => {
            let number = number.as_str();
            for_text(number, form).or_else(|| {
                form.contains("such as \"").then(|| "write it as a string with its unit".to_owned())
            })
        }
        DeValue::Float(number) => for_text(number.as_str(), form),
        DeValue::String(text) if form.contains("a whole number") => {
            text.trim().parse::<u64>().ok().map(|number| format!("write {number}, without quotes"))
        }
        DeValue::String(text) if form == "true or false" => match text.to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" | "1" => Some("write true".to_owned()),
            "false" | "no" | "off" | "0" => Some("write false".to_owned()),
            _ => None,
        },
        DeValue::String(text)
            if form.starts_with("a list of") && text.len() <= SHOWN_BYTES_MAX && !form.contains("[[") =>
        {
            Some(format!("write [{text:?}]"))
        }
        DeValue::Boolean(false) if form.contains("\"off\"") => Some("write \"off\"".to_owned()),
        DeValue::Boolean(true) if form.contains("\"auto\"") => Some("write \"auto\"".to_owned()),
        _ => None,
    }
}

/// For text that does not have the form that `form` describes.
pub(super) fn for_text(text: &str, form: &str) -> Option<String> {
    let compact: String =
        text.chars().filter(|letter| !letter.is_whitespace()).take(SHOWN_BYTES_MAX).collect();
    let unit_at =
        compact.find(|letter: char| !letter.is_ascii_digit() && letter != '.').unwrap_or(compact.len());
    let (number, unit) = compact.split_at(unit_at);
    let fixed = if form.contains("a duration") {
        let unit = match unit.to_ascii_lowercase().as_str() {
            "" | "sec" | "secs" | "second" | "seconds" => "s",
            "msec" | "millis" | "milliseconds" => "ms",
            "usec" | "micros" | "microseconds" => "us",
            "min" | "mins" | "minute" | "minutes" => "m",
            "hr" | "hrs" | "hour" | "hours" => "h",
            "day" | "days" => "d",
            "s" => "s",
            _ => unit,
        };
        whole(number, unit, &[("s", "ms", 1000), ("m", "s", 60), ("h", "m", 60), ("d", "h", 24)])
            .filter(|fixed| units::duration(fixed).is_ok())
    } else if form.contains("a size") {
        let unit = match unit.to_ascii_lowercase().as_str() {
            "" | "b" | "bytes" => "B",
            "k" | "kb" | "kib" => "KiB",
            "m" | "mb" | "mib" => "MiB",
            "g" | "gb" | "gib" => "GiB",
            "t" | "tb" | "tib" => "TiB",
            _ => unit,
        };
        whole(
            number,
            unit,
            &[("KiB", "B", 1024), ("MiB", "KiB", 1024), ("GiB", "MiB", 1024), ("TiB", "GiB", 1024)],
        )
        .filter(|fixed| units::size(fixed).is_ok())
    } else if form.contains("a rate") {
        let unit = match unit.to_ascii_lowercase().as_str() {
            "" | "/sec" | "/second" | "ps" | "rps" => "/s",
            _ => unit,
        };
        Some(format!("{number}{unit}")).filter(|fixed| units::rate(fixed).is_ok())
    } else {
        None
    };
    fixed.filter(|fixed| fixed != text).map(|fixed| format!("write \"{fixed}\""))
}

/// "1.5" of a unit in the next smaller one, if that is whole; a whole number as it is.
fn whole(number: &str, unit: &str, smaller: &[(&str, &str, u64)]) -> Option<String> {
    let Some((whole, fraction)) = number.split_once('.') else { return Some(format!("{number}{unit}")) };
    let (_, smaller, factor) = smaller.iter().find(|(known, ..)| *known == unit)?;
    let scale = 10_u64.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let parts: u64 = fraction.parse().ok()?;
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let parts = parts.checked_mul(*factor).filter(|parts| parts.is_multiple_of(scale))? / scale;
    Some(format!("{}{smaller}", whole.checked_mul(*factor)?.checked_add(parts)?))
}

/// For text that is no IP address with a port.
pub(super) fn for_address(text: &str) -> Option<String> {
    let text = text.trim();
    let fixed = if let Ok(address) = text.parse::<IpAddr>() {
        SocketAddr::new(address, 8080).to_string()
    } else if let Some(port) = text.strip_prefix(':').or_else(|| text.strip_prefix("*:")) {
        format!("[::]:{port}")
    } else if let Some(port) = text.strip_prefix("localhost:") {
        format!("127.0.0.1:{port}")
    } else if text.bytes().all(|byte| byte.is_ascii_digit()) {
        format!("127.0.0.1:{text}")
    } else {
        let (host, port) = text.rsplit_once(':')?;
        format!("[{}]:{port}", host.parse::<std::net::Ipv6Addr>().ok()?)
    };
    fixed.parse::<SocketAddr>().is_ok_and(|address| address.port() != 0).then(|| format!("write \"{fixed}\""))
}

#[cfg(test)]
mod tests;
