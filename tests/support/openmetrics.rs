//! Checks `/metrics` line by line against the rules of `promtool check metrics` and of OpenMetrics text 1.0.

use std::collections::{BTreeMap, BTreeSet};

/// One family as it was declared, and its series so far.
#[derive(Default)]
struct Family {
    kind: String,
    unit: String,
    help: String,
    series: BTreeSet<String>,
    /// The values of a series' buckets, in order. The key is the series' labels without `le`.
    buckets: BTreeMap<String, Vec<(f64, f64)>>,
    counts: BTreeMap<String, f64>,
}

/// Every fault of an exposition; empty if there is none.
#[must_use]
pub fn complaints(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    let mut current = String::new();
    let lines: Vec<&str> = text.lines().collect();
    if lines.last() != Some(&"# EOF") || !text.ends_with('\n') {
        found.push("does not end with # EOF".to_owned());
    }
    for line in &lines {
        let mut complain = |what: &str| found.push(format!("{what}: {line}"));
        if *line == "# EOF" {
            continue;
        }
        if let Some(declared) = line.strip_prefix("# ") {
            let mut parts = declared.splitn(3, ' ');
            let (what, name, value) =
                (parts.next().unwrap_or(""), parts.next().unwrap_or(""), parts.next().unwrap_or(""));
            if name != current && families.contains_key(name) {
                complain("a family in two places");
            }
            current = name.to_owned();
            let family = families.entry(current.clone()).or_default();
            let field = match what {
                "HELP" => &mut family.help,
                "TYPE" => &mut family.kind,
                "UNIT" => &mut family.unit,
                _ => {
                    complain("an unknown comment");
                    continue;
                }
            };
            if !field.is_empty() || !family.series.is_empty() {
                complain("declared twice, or after its samples");
            }
            *field = value.to_owned();
            continue;
        }
        match sample(line) {
            Err(what) => complain(&what),
            Ok((name, labels, value)) => {
                let Some(family) = families.get_mut(&current) else {
                    complain("a sample before any family");
                    continue;
                };
                if let Err(what) = family.take(&current, name, &labels, value) {
                    complain(&what);
                }
            }
        }
    }
    for (name, family) in &families {
        found.extend(family.check(name).into_iter().map(|what| format!("{what}: {name}")));
    }
    found
}

type Labels = Vec<(String, String)>;

/// Parses a sample into name, labels and value.
fn sample(line: &str) -> Result<(&str, Labels, f64), String> {
    let end = line.find(|letter: char| !is_name(letter)).unwrap_or(line.len());
    let (name, rest) = line.split_at(end);
    if name.is_empty() || name.starts_with(|letter: char| letter.is_ascii_digit()) {
        return Err("no name".to_owned());
    }
    let mut labels = Labels::new();
    let mut rest = rest;
    if let Some(mut inside) = rest.strip_prefix('{') {
        while !inside.starts_with('}') {
            let (label, after) = inside.split_once("=\"").ok_or("a label without a value")?;
            if label.is_empty()
                || !label.chars().all(is_name)
                || labels.iter().any(|(known, _)| known == label)
            {
                return Err(format!("the label {label:?}"));
            }
            let mut value = String::new();
            let mut letters = after.char_indices();
            let end = loop {
                match letters.next().ok_or("a label without an end")? {
                    (at, '"') => break at,
                    (_, '\\') => match letters.next() {
                        Some((_, 'n')) => value.push('\n'),
                        Some((_, letter @ ('"' | '\\'))) => value.push(letter),
                        _ => return Err("a wrong escape".to_owned()),
                    },
                    (_, letter) => value.push(letter),
                }
            };
            labels.push((label.to_owned(), value));
            inside = &after[end + 1..];
            inside = inside.strip_prefix(',').unwrap_or(inside);
        }
        rest = &inside[1..];
    }
    let value = rest.strip_prefix(' ').ok_or("no space before the value")?;
    let number = if value == "+Inf" { Ok(f64::INFINITY) } else { value.parse() };
    Ok((name, labels, number.map_err(|_| "no number".to_owned())?))
}

fn is_name(letter: char) -> bool {
    letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '_'
}

impl Family {
    fn take(&mut self, own: &str, name: &str, labels: &[(String, String)], value: f64) -> Result<(), String> {
        let suffix = name.strip_prefix(own).ok_or("a sample of another family")?;
        let allowed: &[&str] = match self.kind.as_str() {
            "counter" => &["_total"],
            "gauge" => &[""],
            "histogram" => &["_bucket", "_sum", "_count"],
            _ => return Err("a type that is not used here".to_owned()),
        };
        if !allowed.contains(&suffix) {
            return Err(format!("{suffix:?} after the name of a {}", self.kind));
        }
        if !self.series.insert(format!("{suffix}{labels:?}")) {
            return Err("a series twice".to_owned());
        }
        if value.is_nan() || value < 0.0 {
            return Err("a value that nothing here can have".to_owned());
        }
        if suffix == "_total" && value.is_infinite() {
            return Err("a counter without end".to_owned());
        }
        let others: Vec<_> = labels.iter().filter(|(label, _)| label != "le").collect();
        let key = format!("{others:?}");
        match suffix {
            "_bucket" => {
                let bound = labels.iter().find(|(label, _)| label == "le").ok_or("a bucket without le")?;
                let bound = if bound.1 == "+Inf" { Ok(f64::INFINITY) } else { bound.1.parse() };
                self.buckets
                    .entry(key)
                    .or_default()
                    .push((bound.map_err(|_| "a bound that is no number")?, value));
            }
            "_count" => drop(self.counts.insert(key, value)),
            _ if others.len() < labels.len() => return Err("le outside of a bucket".to_owned()),
            _ => {}
        }
        Ok(())
    }

    fn check(&self, name: &str) -> Vec<String> {
        let mut found = Vec::new();
        if self.help.len() < 5 {
            found.push("no help".to_owned());
        }
        if self.kind.is_empty() {
            found.push("no type".to_owned());
        }
        let unit = ["seconds", "bytes"]
            .into_iter()
            .find(|unit| name.ends_with(&format!("_{unit}")))
            .unwrap_or_default();
        if self.unit != unit {
            found.push(format!("its unit is {:?}", self.unit));
        }
        let other_units = [
            "_ms",
            "_us",
            "_ns",
            "_milliseconds",
            "_micros",
            "_microseconds",
            "_minutes",
            "_kib",
            "_mib",
            "_kb",
            "_mb",
        ];
        if other_units.iter().any(|unit| name.ends_with(unit)) {
            found.push("not in a base unit".to_owned());
        }
        if ["_total", "_count", "_sum", "_bucket"].iter().any(|suffix| name.ends_with(suffix)) {
            found.push("a suffix that means something else".to_owned());
        }
        if !name.starts_with("sluice_") {
            found.push("a name that is not ours".to_owned());
        }
        for (labels, buckets) in &self.buckets {
            if !buckets.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1) {
                found.push(format!("buckets that do not grow {labels}"));
            }
            if buckets
                .last()
                .is_none_or(|last| last.0.is_finite() || self.counts.get(labels) != Some(&last.1))
            {
                found.push(format!("the last bucket is not the count {labels}"));
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "# HELP sluice_a Some help.\n# TYPE sluice_a counter\n\
        sluice_a_total{x=\"1\",y=\"a\\\"b\\\\\"} 3\nsluice_a_total{x=\"2\",y=\"\"} 3\n\
        # HELP sluice_b_seconds Some help.\n# TYPE sluice_b_seconds histogram\n\
        # UNIT sluice_b_seconds seconds\n\
        sluice_b_seconds_sum 1.5\nsluice_b_seconds_count 2\nsluice_b_seconds_bucket{le=\"0.5\"} 1\n\
        sluice_b_seconds_bucket{le=\"+Inf\"} 2\n# EOF\n";

    #[test]
    fn what_is_right_passes_and_each_mistake_is_found() {
        assert_eq!(complaints(GOOD), Vec::<String>::new());
        for (right, wrong) in [
            ("# EOF\n", ""),
            ("# HELP sluice_a Some help.\n", ""),
            ("# TYPE sluice_a counter", "# TYPE sluice_a thing"),
            ("# UNIT sluice_b_seconds seconds\n", ""),
            ("sluice_a_total{x=\"2\",y=\"\"} 3", "sluice_a_total{x=\"1\",y=\"a\\\"b\\\\\"} 3"),
            ("sluice_a_total{x=\"2\"", "sluice_a{x=\"2\""),
            ("sluice_a_total{x=\"2\"", "sluice_c_total{x=\"2\""),
            ("y=\"\"} 3", "y=\"\"} x"),
            ("y=\"\"} 3", "y=\"\"} -3"),
            ("y=\"\"} 3", "x=\"\"} 3"),
            ("y=\"\"} 3", "y=\"\\q\"} 3"),
            ("sluice_b_seconds_count 2", "sluice_b_seconds_count 3"),
            ("le=\"0.5\"} 1", "le=\"0.5\"} 4"),
            ("sluice_b_seconds_sum", "sluice_b_seconds_total"),
        ] {
            let text = GOOD.replacen(right, wrong, 1);
            assert_ne!(text, GOOD, "{right}");
            assert!(!complaints(&text).is_empty(), "{right:?} as {wrong:?}");
        }
        assert!(!complaints(&GOOD.replace("sluice_b_seconds", "sluice_b_ms")).is_empty());
    }
}
