//! Breakers: which part of a backend's weight they leave.

use crate::outlier::Gate;

/// What is left of a weight behind a backend's breaker and its pool's; something, unless one of them is open.
pub(super) fn kept(weight: u32, backend: Gate, pool: Gate) -> u32 {
    let behind = |weight: u32, gate: Gate| match gate.eighths() {
        None => weight,
        Some(0) => 0,
        Some(eighths) => (u64::from(weight) * u64::from(eighths.min(8)) / 8).max(1) as u32,
    };
    if weight == 0 { 0 } else { behind(behind(weight, backend), pool) }
}

/// What nobody has beside those who have `weights`: all that is `lost` by them, in 32 bits. Where that is too much, everybody
/// has less, in proportion; and something, if it was something.
pub(super) fn together(weights: &mut [u32], lost: &[u32]) -> u32 {
    let nobody: u64 = lost.iter().copied().map(u64::from).sum();
    let excess = (u64::BITS - nobody.leading_zeros()).saturating_sub(u32::BITS);
    if excess > 0 {
        for weight in weights.iter_mut().filter(|weight| **weight > 0) {
            *weight = weight.checked_shr(excess).unwrap_or(0).max(1);
        }
    }
    (nobody >> excess) as u32
}

/// A weight of a service that is steered, in thousandths: room above it for those who get more than all of theirs.
pub(super) fn steered(weight: u32, is_steered: bool, percent: u16) -> u32 {
    if !is_steered || weight == 0 {
        return weight;
    }
    (u64::from(weight) * u64::from(percent.min(1_000)) / 1_000).max(1) as u32
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_lost_is_nobodys_in_full_however_much_it_is() {
        let mut weights = [4_000_000_000, 0, 1];
        assert_eq!((together(&mut weights, &[0, 7, 5]), weights), (12, [4_000_000_000, 0, 1]));
        assert_eq!(together(&mut weights, &[4_000_000_000, 4_000_000_000, 2]), 4_000_000_001);
        assert_eq!(weights, [2_000_000_000, 0, 1], "half of it, and never nothing");
        assert_eq!(together(&mut weights, &[]), 0);
    }

    #[test]
    fn who_is_steered_has_more_or_less_than_others_and_never_nothing() {
        assert_eq!(steered(6_553_600, false, 200), 6_553_600);
        assert_eq!(
            [50, 100, 200].map(|percent| steered(6_553_600, true, percent)),
            [327_680, 655_360, 1_310_720]
        );
        assert_eq!((steered(1, true, 50), steered(0, true, 200)), (1, 0));
        assert_eq!(steered(u32::MAX, true, u16::MAX), u32::MAX);
    }

    #[test]
    fn a_breaker_leaves_what_it_lets_through_and_never_nothing_unless_it_is_open() {
        let open = Gate::Open(Duration::ZERO);
        assert_eq!(kept(800, Gate::Closed, Gate::Closed), 800);
        assert_eq!(kept(800, Gate::Shedding(6), Gate::Closed), 600);
        assert_eq!(kept(800, Gate::Shedding(4), Gate::Shedding(4)), 200);
        assert_eq!(kept(800, Gate::HalfOpen(2), Gate::Closed), 100);
        assert_eq!((kept(800, open, Gate::Closed), kept(800, Gate::Closed, open)), (0, 0));
        assert_eq!(
            (kept(1, Gate::HalfOpen(0), Gate::Closed), kept(0, Gate::HalfOpen(0), Gate::Closed)),
            (1, 0)
        );
        assert_eq!(kept(u32::MAX, Gate::Shedding(7), Gate::Closed), 3_758_096_383);
    }
}
