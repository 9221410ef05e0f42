//! The split: one word, changed by one store. Also without an agent.

use std::mem::offset_of;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lb_common::abi::{Backend, Life, Service, Split};
use lb_common::settle::divided;

use crate::dataplane::bpf::Mapped;

/// What becomes of flows that are established in a canary that is rolled back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flows {
    /// They finish where they are.
    Keep,
    /// Their next packet goes to the stable pool, which resets them: their clients reconnect at once.
    Reset,
}

/// A share of the hash space in units of 2^-32; everything is [`Split::ALL`].
#[must_use]
pub fn share(percent: f64) -> u32 {
    let share = (percent / 100.0 * 4_294_967_296.0).round();
    if share >= f64::from(u32::MAX) { Split::ALL } else { share.max(0.0) as u32 }
}

/// The percentage of a share, to six decimals: what was asked for, not what 2^-32 makes of it.
#[must_use]
pub fn percent(share: u32) -> f64 {
    if share == Split::ALL { 100.0 } else { (f64::from(share) / 4_294_967_296.0 * 1e8).round() / 1e6 }
}

/// Whether no flow is or may be in the canary by its hash.
#[must_use]
pub fn is_settled_at_zero(service: &Service) -> bool {
    service.split().new() == 0 && service.home() == 0
}

/// Whether every flow is in the canary by its hash.
#[must_use]
pub fn is_settled_at_all(service: &Service) -> bool {
    service.split().new() == Split::ALL && service.home() == Split::ALL
}

/// Sends new flows below `share` to the canary, from the next packet on. Returns the split before.
///
/// Whoever is established stays where it is: `tracked` rises with the split and never sinks here.
pub fn set(services: &Mapped<Service>, index: u32, share: u32) -> Split {
    let home = word(services, index, offset_of!(Service, split_home)).load(Ordering::Acquire) as u32;
    let before = word(services, index, offset_of!(Service, split)).update(
        Ordering::AcqRel,
        Ordering::Acquire,
        |word| divided(Split(word), home, share).0,
    );
    Split(before)
}

/// The same, unless the split is not what it was `expected` to be. Returns whether it was.
pub fn change(services: &Mapped<Service>, index: u32, expected: Split, share: u32) -> bool {
    if expected.0 == 0 {
        // Nobody looks at the home of a split that is all zeros: what a reset may have left there must not come back.
        word(services, index, offset_of!(Service, split_home)).store(0, Ordering::Release);
    }
    let home = word(services, index, offset_of!(Service, split_home)).load(Ordering::Acquire) as u32;
    let next = divided(expected, home, share);
    let split = word(services, index, offset_of!(Service, split));
    split.compare_exchange(expected.0, next.0, Ordering::AcqRel, Ordering::Acquire).is_ok()
}

/// Ends a split that has settled with everything in the canary, whose table is the stable pool's by now. `false`: it is
/// another one, because somebody has rolled back, and was left alone.
pub fn promote(services: &Mapped<Service>, index: u32) -> bool {
    let all = Split::of(Split::ALL, services.read(index).split().tracked());
    let split = word(services, index, offset_of!(Service, split));
    let done = split.compare_exchange(all.0, 0, Ordering::AcqRel, Ordering::Acquire).is_ok();
    if done {
        word(services, index, offset_of!(Service, split_home)).store(0, Ordering::Release);
    }
    done
}

/// A rollback, done.
#[derive(Clone, Copy, Debug)]
pub struct RolledBack {
    /// The split before.
    pub before: Split,
    /// How long the store took: when it returns, the next packet obeys.
    pub store: Duration,
}

/// Sends no new flow to the canary, from the next packet on.
pub fn roll_back(
    services: &Mapped<Service>,
    backends: &Mapped<Backend>,
    index: u32,
    flows: Flows,
) -> RolledBack {
    let start = Instant::now();
    let before = set(services, index, 0);
    let store = start.elapsed();
    if flows == Flows::Reset {
        // Nothing leads to the canary any more, and what is tracked as going there is void.
        let canary = services.read(index).canary_pool;
        word(services, index, offset_of!(Service, split_home)).store(0, Ordering::Release);
        for id in 1..backends.len() {
            let backend = backends.read(id);
            if backend.service == index && backend.pool == canary && canary != 0 {
                word(backends, id, offset_of!(Backend, life)).update(
                    Ordering::AcqRel,
                    Ordering::Acquire,
                    |word| {
                        let life = Life(word);
                        Life::of(life.generation().wrapping_add(1), life.is_usable()).0
                    },
                );
            }
        }
    }
    RolledBack { before, store }
}

fn word<T: bytemuck::Pod>(map: &Mapped<T>, index: u32, offset: usize) -> &AtomicU64 {
    map.word(index, offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_and_percentages_are_each_others_inverse() {
        assert_eq!((share(0.0), share(100.0), share(50.0)), (0, Split::ALL, 1 << 31));
        assert_eq!(share(1.0), 42_949_673);
        for tenth in 0..=1000u32 {
            let percent_in = f64::from(tenth) / 10.0;
            assert_eq!(percent(share(percent_in)), percent_in);
        }
        assert_eq!((share(-1.0), share(1000.0)), (0, Split::ALL));
    }
}
