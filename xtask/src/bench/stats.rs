//! Statistics over several rounds: median, smallest and largest value, and the comparison of two entrants by
//! round.

use serde::Serialize;

/// The median, the smallest and the largest value of some rounds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) min: f64,
    pub(super) max: f64,
}

/// `None` without values. The median of an even number is the mean of the middle two.
pub(super) fn spread(values: &[f64]) -> Option<Spread> {
    let mut sorted: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    let (&min, &max) = (sorted.first()?, sorted.last()?);
    let half = sorted.len() / 2;
    let median =
        if sorted.len() % 2 == 1 { sorted[half] } else { f64::midpoint(sorted[half - 1], sorted[half]) };
    Some(Spread { median, min, max })
}

/// The spread of `ours / theirs` over the rounds. A disturbance that slows a whole round slows both and
/// cancels out.
pub(super) fn paired_ratio(ours: &[f64], theirs: &[f64]) -> Option<Spread> {
    let ratios: Vec<f64> = ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect();
    spread(&ratios)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_odd_even_and_nothing() {
        assert_eq!(spread(&[3.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(spread(&[4.0, 1.0, 2.0, 3.0]), Some(Spread { median: 2.5, min: 1.0, max: 4.0 }));
        assert_eq!(spread(&[]), None);
    }

    #[test]
    fn a_round_without_a_figure_counts_for_nothing() {
        assert_eq!(spread(&[f64::NAN, 5.0, f64::INFINITY]), Some(Spread { median: 5.0, min: 5.0, max: 5.0 }));
    }

    #[test]
    fn a_slow_round_cancels_out_of_paired_ratios() {
        let ratio = paired_ratio(&[8.0, 80.0, 8.4], &[10.0, 100.0, 10.0]).unwrap();
        assert!((ratio.median - 0.8).abs() < 1e-9 && (ratio.max - 0.84).abs() < 1e-9, "{ratio:?}");
    }
}
