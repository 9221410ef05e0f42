//! Priorities: what the healthy backends of one cannot take goes to the next.
//!
//! As Envoy does it between the priorities of a cluster ("Priority levels" and "Panic threshold" in its documentation): a
//! priority can take its percentage of healthy backends times an overprovisioning factor of 1.4, so that it spills over only
//! once fewer than 5 of 7 are left. What that leaves goes to the next one, and so on. Where all of them together cannot take
//! everything, they share it in proportion to what they can.
//!
//! Here the spill-over is a matter of weights: all priorities of a pool are in its one table. A backend's weight becomes its
//! part of its priority's share, in 32 bits, so that the shares come out to the slot.

/// What all priorities have together.
pub(super) const ALL: u64 = 1 << 32;

/// The backends of one priority, in numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Level {
    /// Which one; 0 is the first.
    pub priority: u32,
    /// Backends that can take flows.
    pub fit: u32,
    /// Backends that should.
    pub of: u32,
}

impl Level {
    /// What it can take, in parts of [`ALL`].
    fn health(self) -> u64 {
        let (fit, of) = (u128::from(self.fit), u128::from(self.of.max(1)));
        let health = u128::from(ALL) * fit * 14 / (of * 10);
        u64::try_from(health).unwrap_or(ALL).min(ALL)
    }
}

/// Whether the priorities can take everything between them.
pub(super) fn suffice(levels: &[Level]) -> bool {
    levels.iter().map(|level| level.health()).sum::<u64>() >= ALL
}

/// What each priority takes, in parts of [`ALL`], the first priority first. The sum is [`ALL`], unless there is nobody at all.
///
/// Where nobody is fit, the shares are by numbers: they are for a pool that ignores health.
pub(super) fn shares(levels: &[Level]) -> Vec<u64> {
    let mut able: Vec<u64> = levels.iter().map(|level| level.health()).collect();
    if able.iter().all(|&health| health == 0) {
        able = levels.iter().map(|level| u64::from(level.of)).collect();
    } else if suffice(levels) {
        let mut left = ALL;
        return able
            .into_iter()
            .map(|health| {
                let share = health.min(left);
                left -= share;
                share
            })
            .collect();
    }
    let total: u128 = able.iter().copied().map(u128::from).sum();
    if total == 0 {
        return able;
    }
    let mut shares: Vec<u64> =
        able.iter().map(|&health| (u128::from(health) * u128::from(ALL) / total) as u64).collect();
    // What rounding left over goes to the first who can take it.
    let rest = ALL - shares.iter().sum::<u64>();
    if let Some(first) = shares.iter_mut().find(|share| **share > 0) {
        *first += rest;
    }
    shares
}

/// A backend that takes new flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Taker {
    /// Its priority, as an index of the levels.
    pub level: usize,
    /// Its weight among those of its priority; 0: it takes none.
    pub weight: u32,
}

/// The weights of the table: each backend's part of its priority's share.
pub(super) fn weigh(takers: &[Taker], shares: &[u64]) -> Vec<u32> {
    let share = |taker: &Taker| shares.get(taker.level).copied().unwrap_or(0);
    let mut totals = vec![0u128; shares.len()];
    for taker in takers {
        if let Some(total) = totals.get_mut(taker.level) {
            *total += u128::from(taker.weight);
        }
    }
    let several = shares.iter().zip(&totals).filter(|&(&share, &total)| share > 0 && total > 0).count() > 1;
    takers
        .iter()
        .map(|taker| match (share(taker), totals.get(taker.level)) {
            (0, _) | (_, None | Some(0)) => 0,
            // The weights as they are: nothing is rounded.
            _ if !several => taker.weight,
            _ if taker.weight == 0 => 0,
            (share, Some(total)) => {
                let part = u128::from(share) * u128::from(taker.weight) / total;
                u32::try_from(part).unwrap_or(u32::MAX).max(1)
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use lb_common::maglev::{Candidate, apportion};
    use proptest::prelude::*;

    use super::*;

    fn levels(numbers: &[(u32, u32)]) -> Vec<Level> {
        (0..).zip(numbers).map(|(priority, &(fit, of))| Level { priority, fit, of }).collect()
    }

    /// In whole percent.
    fn percent(numbers: &[(u32, u32)]) -> Vec<u64> {
        shares(&levels(numbers)).into_iter().map(|share| (share * 100 + ALL / 2) / ALL).collect()
    }

    #[test]
    fn shares_are_those_of_envoys_documentation() {
        // Its tables: the health of each priority in percent, and what each one gets.
        for (health, expected) in [
            (&[100, 100][..], &[100, 0][..]),
            (&[72, 100], &[100, 0]),
            (&[71, 100], &[99, 1]),
            (&[50, 100], &[70, 30]),
            (&[25, 100], &[35, 65]),
            (&[0, 100], &[0, 100]),
            (&[25, 25], &[50, 50]),
            (&[25, 0], &[100, 0]),
            (&[100, 100, 100], &[100, 0, 0]),
            (&[72, 72, 100], &[100, 0, 0]),
            (&[71, 71, 100], &[99, 1, 0]),
            (&[50, 50, 100], &[70, 30, 0]),
            (&[25, 100, 100], &[35, 65, 0]),
            (&[25, 25, 100], &[35, 35, 30]),
        ] {
            let numbers: Vec<(u32, u32)> = health.iter().map(|&fit| (fit, 100)).collect();
            assert_eq!(percent(&numbers), expected, "{health:?}");
        }
    }

    #[test]
    fn where_nobody_is_fit_numbers_count() {
        assert_eq!(percent(&[(0, 3), (0, 1)]), [75, 25]);
        assert_eq!(shares(&levels(&[(0, 0)])), [0]);
    }

    #[test]
    fn weights_of_one_priority_are_left_alone() {
        let takers =
            [Taker { level: 0, weight: 7 }, Taker { level: 1, weight: 9 }, Taker { level: 0, weight: 0 }];
        assert_eq!(weigh(&takers, &[ALL, 0]), [7, 0, 0]);
        assert_eq!(weigh(&takers, &[0, ALL]), [0, 9, 0]);
        assert_eq!(weigh(&takers, &[0, 0]), [0, 0, 0]);
    }

    fn some_levels() -> impl Strategy<Value = Vec<(u32, u32)>> {
        let level = (0..50u32).prop_flat_map(|of| (0..=of, Just(of)));
        prop::collection::vec(level, 1..6)
    }

    proptest! {
        #[test]
        fn shares_are_everything(numbers in some_levels()) {
            let sum: u64 = shares(&levels(&numbers)).iter().sum();
            prop_assert_eq!(sum, if numbers.iter().any(|&(_, of)| of > 0) { ALL } else { 0 });
        }

        #[test]
        fn a_priority_that_is_healthier_takes_no_less_and_those_after_it_no_more(
            numbers in some_levels(), which in any::<prop::sample::Index>(),
        ) {
            let which = which.index(numbers.len());
            let (fit, of) = numbers[which];
            prop_assume!(fit < of && numbers.iter().any(|&(fit, _)| fit > 0));
            let mut healthier = numbers.clone();
            healthier[which].0 += 1;
            let (before, after) = (shares(&levels(&numbers)), shares(&levels(&healthier)));
            // Rounding: a few parts of 2^32.
            prop_assert!(after[which] + 8 >= before[which], "{:?} {:?}", before, after);
            for later in which + 1..numbers.len() {
                prop_assert!(after[later] <= before[later] + 8, "{:?} {:?}", before, after);
            }
        }

        #[test]
        fn a_priority_gets_nothing_while_those_before_it_can_take_everything(numbers in some_levels()) {
            let all = levels(&numbers);
            let shares = shares(&all);
            for end in 1..all.len() {
                if suffice(&all[..end]) {
                    prop_assert!(shares[end..].iter().all(|&share| share == 0));
                }
            }
        }

        #[test]
        fn slots_are_the_shares_to_within_a_slot_for_each_backend(
            numbers in prop::collection::vec((1..8u32, 1..8u32), 2..4), weights in prop::collection::vec(1..300u32, 32),
        ) {
            const SLOTS: u32 = 16_381;
            let levels: Vec<Level> = (0..).zip(&numbers)
                .map(|(priority, &(a, b))| Level { priority, fit: a.min(b), of: a.max(b) }).collect();
            let takers: Vec<Taker> = levels.iter().enumerate()
                .flat_map(|(at, level)| (0..level.fit).map(move |_| at)).zip(&weights)
                .map(|(level, &weight)| Taker { level, weight: weight << 16 }).collect();
            let shares = shares(&levels);
            let table = weigh(&takers, &shares);
            let candidates: Vec<Candidate> =
                (1..).zip(&table).map(|(hash, &weight)| Candidate { hash, weight }).collect();
            let slots = apportion(&candidates, SLOTS);
            for (at, share) in shares.iter().enumerate() {
                let in_level = |(taker, _): &(&Taker, &u32)| taker.level == at;
                let (count, got) = takers.iter().zip(&slots).filter(in_level)
                    .fold((0u32, 0u32), |(count, sum), (_, slots)| (count + 1, sum + slots));
                let quota = *share as f64 / ALL as f64 * f64::from(SLOTS);
                prop_assert!((f64::from(got) - quota).abs() <= f64::from(count) + 1.0, "{} for {}", got, quota);
            }
        }
    }
}
