//! One reading of `/metrics`, in Prometheus text.

use std::collections::BTreeMap;

/// Every series with its value.
#[derive(Clone, Debug, Default)]
pub struct Metrics(BTreeMap<String, f64>);

impl Metrics {
    /// Parses the text format; panics on a malformed line.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        Self(
            lines
                .map(|line| {
                    let (series, value) =
                        line.rsplit_once(' ').unwrap_or_else(|| panic!("not a metric: {line:?}"));
                    (series.to_owned(), value.parse().unwrap_or_else(|_| panic!("not a number: {line:?}")))
                })
                .collect(),
        )
    }

    /// The sum of a metric over all its label sets; panics if no metric has that name.
    #[must_use]
    pub fn sum(&self, name: &str) -> f64 {
        let mut found = self.0.iter().filter(|(series, _)| base(series) == name).peekable();
        assert!(found.peek().is_some(), "no metric {name} among:\n{}", self.names().join("\n"));
        found.map(|(_, value)| value).sum()
    }

    /// The sum of a metric's series that carry this label; 0 if there is none.
    #[must_use]
    pub fn labelled(&self, name: &str, label: &str, value: &str) -> f64 {
        let wanted = format!("{label}=\"{value}\"");
        let series = self.0.iter().filter(|(series, _)| base(series) == name && series.contains(&wanted));
        series.map(|(_, value)| value).sum()
    }

    /// Every metric's name, once.
    #[must_use]
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<_> = self.0.keys().map(|series| base(series)).collect();
        names.dedup();
        names
    }
}

fn base(series: &str) -> &str {
    series.split_once('{').map_or(series, |(name, _)| name)
}
