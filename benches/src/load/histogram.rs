//! A log-linear histogram of nanoseconds. Each power of two is cut into 128 equal parts, so a value is known
//! to 0.8 %.

/// The logarithm to base 2 of the parts of a power of two.
const PART_BITS: u32 = 7;
const PARTS: usize = 1 << PART_BITS;
/// Buckets for all of u64: values below PARTS exactly, then one row of parts for each further bit.
const BUCKETS: usize = (64 - PART_BITS as usize + 1) * PARTS;

/// How often each value was counted.
#[derive(Clone, Debug)]
pub struct Histogram {
    buckets: Vec<u64>,
    count: u64,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: vec![0; BUCKETS], count: 0, max: 0 }
    }
}

const fn bucket(value: u64) -> usize {
    let shift = (u64::BITS - value.leading_zeros()).saturating_sub(PART_BITS + 1);
    (shift as usize) * PARTS + (value >> shift) as usize
}

/// The largest value of a bucket.
const fn highest(bucket: usize) -> u64 {
    if bucket < 2 * PARTS {
        return bucket as u64;
    }
    let shift = bucket / PARTS - 1;
    let first = ((bucket % PARTS + PARTS) as u64) << shift;
    first + ((1 << shift) - 1)
}

impl Histogram {
    /// Counts a value once.
    pub fn record(&mut self, value: u64) {
        self.buckets[bucket(value)] += 1;
        self.count += 1;
        self.max = self.max.max(value);
    }

    /// How many values were recorded.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// The largest value, exactly.
    #[must_use]
    pub const fn max(&self) -> u64 {
        self.max
    }

    /// The value that this share of all values does not exceed, at most 0.8 % too large. 0 without values.
    #[must_use]
    pub fn quantile(&self, share: f64) -> u64 {
        let rank = ((self.count as f64 * share).ceil() as u64).clamp(1, self.count.max(1));
        let mut seen = 0;
        for (index, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return highest(index).min(self.max);
            }
        }
        self.max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_follow_each_other_without_gap() {
        let mut next = 0_u64;
        for index in 0..BUCKETS {
            assert_eq!(bucket(next), index);
            assert_eq!(bucket(highest(index)), index);
            let Some(following) = highest(index).checked_add(1) else {
                assert_eq!(index, BUCKETS - 1);
                return;
            };
            next = following;
        }
        panic!("the last bucket ends before u64 does");
    }

    #[test]
    fn quantiles_are_near_those_of_the_sorted_values() {
        let mut state = 88_172_645_463_325_252_u64;
        let mut values: Vec<u64> = (0..50_000)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 40) * (state & 0xff)
            })
            .collect();
        let mut histogram = Histogram::default();
        values.iter().for_each(|&value| histogram.record(value));
        values.sort_unstable();
        for share in [0.001, 0.5, 0.9, 0.99, 0.999] {
            let exact = values[(values.len() as f64 * share).ceil() as usize - 1];
            let found = histogram.quantile(share);
            assert!(found >= exact && found - exact <= exact / 128 + 1, "{share}: {found} for {exact}");
        }
        assert_eq!((histogram.quantile(1.0), histogram.max()), (values[49_999], values[49_999]));
        assert_eq!(histogram.count(), 50_000);
        assert_eq!(Histogram::default().quantile(0.5), 0);
    }
}
