//! What became of the handshakes of a pool that is measured.

use std::ops::AddAssign;
use std::sync::LazyLock;

use lb_common::measure::{BUCKETS, bucket_start};

use super::text::Histogram;

/// Times of one pool, as the kernel makes them ([`lb_common::measure`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handshakes {
    /// By how long a client's first SYN waited for its answer.
    pub answered: [u64; BUCKETS],
    /// By how long a client's first SYN waited for the backend's first byte.
    pub first_byte: [u64; BUCKETS],
}

impl Default for Handshakes {
    fn default() -> Self {
        Self::NONE
    }
}

impl AddAssign<&Self> for Handshakes {
    fn add_assign(&mut self, other: &Self) {
        fn add<const N: usize>(sum: &mut [u64; N], other: &[u64; N]) {
            sum.iter_mut().zip(other).for_each(|(sum, count)| *sum += count);
        }
        add(&mut self.answered, &other.answered);
        add(&mut self.first_byte, &other.first_byte);
    }
}

impl Handshakes {
    /// None at all.
    pub const NONE: Self = Self { answered: [0; BUCKETS], first_byte: [0; BUCKETS] };
}

/// The kernel's buckets at which Prometheus' end: each twice as long as the one before, from 131 µs to 8.6 s.
const BOUNDS: std::ops::RangeInclusive<usize> = 7..=23;

/// As they are written.
pub(super) static WRITTEN: LazyLock<Vec<String>> =
    LazyLock::new(|| BOUNDS.map(|log| seconds(2 * log).to_string()).collect());

fn seconds(bucket: usize) -> f64 {
    bucket_start(bucket) as f64 / 1e9
}

/// In Prometheus' buckets. The kernel adds up no times: the sum takes each for the middle of its bucket.
pub(super) fn histogram(counts: &[u64; BUCKETS]) -> Histogram {
    let (mut sum, mut done) = (0, 0);
    let below = BOUNDS.map(|log| {
        sum += counts[done..2 * log].iter().sum::<u64>();
        done = 2 * log;
        sum
    });
    let middle = |bucket: usize| (seconds(bucket) + seconds((bucket + 1).min(BUCKETS - 1))) / 2.0;
    let some = counts.iter().enumerate().filter(|(_, count)| **count > 0);
    Histogram {
        below: below.collect(),
        count: counts.iter().sum(),
        sum: some.map(|(bucket, &count)| count as f64 * middle(bucket)).sum(),
    }
}

#[cfg(test)]
mod tests {
    use lb_common::measure::bucket;

    use super::*;

    #[test]
    fn a_time_is_in_every_bucket_whose_bound_it_is_below() {
        let mut counts = [0; BUCKETS];
        for us in [50, 130, 135, 1_500, 10_000_000] {
            counts[bucket(us * 1_000)] += 1;
        }
        let made = histogram(&counts);
        assert_eq!((WRITTEN[0].as_str(), made.below[0]), ("0.000131072", 2));
        let bounds: Vec<f64> = WRITTEN.iter().map(|bound| bound.parse().unwrap()).collect();
        let at = |bound: f64| Some(made.below[bounds.iter().position(|it| *it >= bound)?]);
        assert_eq!((at(0.0002), at(0.002), at(8.0)), (Some(3), Some(4), Some(4)));
        assert_eq!(made.count, 5);
        assert!((made.sum - 10.0).abs() < 2.5, "each within half of its bucket: {}", made.sum);
        assert!(bounds.is_sorted_by(|a, b| a < b) && made.below.is_sorted());
    }
}
