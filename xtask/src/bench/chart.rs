//! Bar charts as SVG: groups of horizontal bars. Each bar shows its median in figures, and a whisker from the
//! smallest to the largest value. The colours are readable on light and dark ground.

use std::fmt::Write;

use super::stats::Spread;

/// One bar.
pub(super) struct Bar {
    pub(super) name: String,
    pub(super) value: Spread,
}

/// Bars that belong together.
pub(super) struct Group {
    pub(super) title: String,
    pub(super) bars: Vec<Bar>,
}

/// A picture.
pub(super) struct Chart {
    pub(super) title: String,
    pub(super) unit: String,
    pub(super) groups: Vec<Group>,
    /// Each line of the grid stands for ten times the value of the line before.
    pub(super) logarithmic: bool,
}

const WIDTH: f64 = 860.0;
const LEFT: f64 = 190.0;
const RIGHT: f64 = 90.0;
const BAR: f64 = 16.0;
const STEP: f64 = 22.0;
const HEAD: f64 = 52.0;
const GROUP_HEAD: f64 = 24.0;
const GROUP_GAP: f64 = 14.0;

/// The colour of a name, so that a proxy looks the same in every chart.
fn colour(name: &str) -> &'static str {
    let colours = [
        ("sluice", "#2f81f7"),
        ("nginx", "#3fa45b"),
        ("haproxy", "#d29922"),
        ("envoy", "#b76ad6"),
        ("pingora", "#e5534b"),
    ];
    colours.iter().find(|(start, _)| name.starts_with(start)).map_or("#8b949e", |&(_, colour)| colour)
}

const STYLE: &str = "text{font:13px \
    system-ui,sans-serif;fill:#24292f}.t{font-size:15px;font-weight:600}.g{font-weight:600}\
    .s{fill:#6e7781;font-size:11px}.grid{stroke:#8b949e;stroke-opacity:.3}.w{stroke:#24292f;stroke-width:1.3}\
    @media(prefers-color-scheme:dark){text{fill:#d1d7e0}.s{fill:#9198a1}.w{stroke:#d1d7e0}}";

impl Chart {
    /// `None` if the chart has no values.
    pub(super) fn svg(&self) -> Option<String> {
        let values: Vec<f64> =
            self.groups.iter().flat_map(|group| &group.bars).map(|bar| bar.value.max).collect();
        if values.is_empty() {
            return None;
        }
        let scale = Scale::new(&self.all_values(), self.logarithmic);
        let bottom = HEAD
            + self
                .groups
                .iter()
                .map(|group| GROUP_HEAD + group.bars.len() as f64 * STEP + GROUP_GAP)
                .sum::<f64>();
        let mut svg = String::new();
        let (width, height) = (WIDTH, bottom + 26.0);
        let title = escape(&self.title);
        let _ = writeln!(
            svg,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
             height=\"{height}\" role=\"img\" aria-label=\"{title}\">\n\
             <style>{STYLE}</style>\n<text class=\"t\" x=\"12\" y=\"22\">{title}</text>\n\
             <text class=\"s\" x=\"12\" y=\"39\">{}; median, whisker from least to most round{}</text>",
            escape(&self.unit),
            if self.logarithmic { "; logarithmic" } else { "" },
        );
        for tick in &scale.ticks {
            let x = scale.x(*tick);
            let _ = writeln!(
                svg,
                "<line class=\"grid\" x1=\"{x:.1}\" y1=\"{HEAD}\" x2=\"{x:.1}\" y2=\"{bottom:.1}\"/><text \
                 class=\"s\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                bottom + 15.0,
                number(*tick)
            );
        }
        let mut y = HEAD;
        for group in &self.groups {
            let _ = writeln!(
                svg,
                "<text class=\"g\" x=\"12\" y=\"{:.1}\">{}</text>",
                y + 15.0,
                escape(&group.title)
            );
            y += GROUP_HEAD;
            for bar in &group.bars {
                draw(&mut svg, bar, y, &scale);
                y += STEP;
            }
            y += GROUP_GAP;
        }
        svg.push_str("</svg>\n");
        Some(svg)
    }

    fn all_values(&self) -> Vec<f64> {
        let bars = self.groups.iter().flat_map(|group| &group.bars);
        bars.flat_map(|bar| [bar.value.min, bar.value.max]).collect()
    }
}

fn draw(svg: &mut String, bar: &Bar, y: f64, scale: &Scale) {
    let Spread { median, min, max } = bar.value;
    let (middle, end, low, high) = (y + BAR / 2.0, scale.x(median), scale.x(min), scale.x(max));
    let _ = writeln!(
        svg,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\
         <rect x=\"{LEFT}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{BAR}\" rx=\"2\" fill=\"{}\"/>\
         <path class=\"w\" fill=\"none\" d=\"M{low:.1} {middle:.1}H{high:.1}M{low:.1} {:.1}v8M{high:.1} \
         {:.1}v8\"/>\
         <text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
        LEFT - 8.0,
        middle + 4.5,
        escape(&bar.name),
        (end - LEFT).max(1.0),
        colour(&bar.name),
        middle - 4.0,
        middle - 4.0,
        high.max(end) + 8.0,
        middle + 4.5,
        number(median),
    );
}

/// Maps values to positions in the picture.
struct Scale {
    low: f64,
    high: f64,
    logarithmic: bool,
    ticks: Vec<f64>,
}

impl Scale {
    fn new(values: &[f64], logarithmic: bool) -> Self {
        let max = values.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
        if logarithmic {
            let min = values.iter().copied().filter(|value| *value > 0.0).fold(max, f64::min);
            let (first, last) = (min.log10().floor() as i32, max.log10().ceil() as i32);
            let last = last.max(first + 1);
            let ticks = (first..=last).map(|power| 10f64.powi(power)).collect();
            return Self { low: 10f64.powi(first), high: 10f64.powi(last), logarithmic, ticks };
        }
        let step = step(max / 5.0);
        let count = (max / step).ceil().max(1.0);
        let ticks = (0..=count as u32).map(|at| f64::from(at) * step).collect();
        Self { low: 0.0, high: count * step, logarithmic, ticks }
    }

    fn x(&self, value: f64) -> f64 {
        let part = if self.logarithmic {
            (value.max(self.low) / self.low).log10() / (self.high / self.low).log10()
        } else {
            value / self.high
        };
        LEFT + part.clamp(0.0, 1.0) * (WIDTH - LEFT - RIGHT)
    }
}

/// The next of 1, 2, 5, 10, 20, … that is at least `at_least`.
fn step(at_least: f64) -> f64 {
    let power = 10f64.powf(at_least.log10().floor());
    [1.0, 2.0, 5.0]
        .into_iter()
        .map(|factor| factor * power)
        .find(|step| *step >= at_least)
        .unwrap_or(10.0 * power)
}

/// Shows about three digits.
fn number(value: f64) -> String {
    match value {
        0.0 => "0".into(),
        value if value.abs() >= 10_000.0 => super::cases::thousands(value.round() as u64),
        value if value.abs() >= 100.0 || value == value.round() => format!("{value:.0}"),
        value if value.abs() >= 1.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(title: &str, values: &[f64], logarithmic: bool) -> Chart {
        let bars = values.iter().map(|&median| Bar {
            name: "sluice \"<again>\" & more".into(),
            value: Spread { median, min: median / 2.0, max: median * 2.0 },
        });
        let groups = vec![Group { title: "a < b".into(), bars: bars.collect() }];
        Chart { title: title.into(), unit: "µs".into(), groups, logarithmic }
    }

    #[test]
    fn what_is_written_is_escaped() {
        let svg = chart("<script>&\"", &[1.0], false).svg().unwrap();
        assert!(
            svg.contains("&lt;script&gt;&amp;&quot;")
                && svg.contains("a &lt; b")
                && svg.contains("&lt;again&gt;&quot; &amp; more")
        );
        assert!(!svg.contains("<script>"));
        assert_eq!(svg.matches("<rect").count(), 1);
        assert!(chart("empty", &[], false).svg().is_none());
    }

    #[test]
    fn scales_hold_their_values() {
        for (values, logarithmic) in
            [(vec![0.3, 7.0, 19.0], false), (vec![500.0, 90_000.0], true), (vec![10.0, 10.0], true)]
        {
            let scale = Scale::new(&values, logarithmic);
            assert!(
                values.iter().all(|value| *value >= scale.low && *value <= scale.high * 1.000_001),
                "{values:?}"
            );
            assert!(scale.ticks.len() >= 2 && scale.ticks.len() < 12, "{:?}", scale.ticks);
            assert!(scale.x(values[0]) <= scale.x(values[1]));
        }
        assert_eq!(
            (number(0.0), number(0.123), number(12.34), number(250.4), number(88_123.0)),
            ("0".into(), "0.12".into(), "12.3".into(), "250".into(), "88,123".into())
        );
    }
}
