//! Just-enough tracking against a model: random histories of an operator, an agent and its clients.
//!
//! The real selection rule decides every packet, the real sweep cleans up, and packets fall between any two of its steps. The
//! model knows only what clients and servers know: which backend each flow began on. It asserts the invariants I1, I2 and I4 of
//! the architecture; that the tables move no more slots than they must (I3) and that balancers agree (I5) are properties of
//! `maglev` and `agreement.rs`.
//!
//! `LB_MODEL_CASES` sets how many histories there are, `LB_MODEL_SEED` the first one; a failure names its seed, and
//! `LB_MODEL_TRACE=1` tells every decision of it.

mod agent;
mod rng;
mod sweeping;
mod traffic;
mod world;

use std::env;

use world::{Fault, Setup, Stats, Violation, World};

/// Histories of one kind; a few thousand in all.
const CASES: u64 = if cfg!(debug_assertions) { 400 } else { 2000 };
const STEPS: u32 = 400;

fn number(name: &str, default: u64) -> u64 {
    env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

fn run(seed: u64, setup: &Setup) -> Result<Stats, Violation> {
    let mut world = World::new(seed, setup);
    for _ in 0..STEPS {
        world.step()?;
    }
    Ok(world.stats())
}

/// Runs histories; none may violate an invariant. Returns what happened in all of them.
fn explore(setup: &Setup) -> Stats {
    let first = number("LB_MODEL_SEED", 0);
    let mut total = Stats::default();
    for seed in first..first + number("LB_MODEL_CASES", CASES) {
        match run(seed, setup) {
            Ok(stats) => total += stats,
            Err(violation) => panic!("{violation}\n  reproduce with LB_MODEL_SEED={seed} LB_MODEL_CASES=1"),
        }
    }
    println!("{total:?}");
    total
}

#[test]
fn no_tcp_flow_moves() {
    let total = explore(&Setup::tcp());
    // A model that never leaves the fast path, or never on it, would assert nothing.
    assert!(total.settled > 0 && total.slow > total.settled / 10, "{total:?}");
    assert!(total.captured > 0 && total.promotions > 0 && total.reused > 0 && total.lapses > 0, "{total:?}");
    assert!(total.closed > 0, "no split was ever closed: {total:?}");
    assert!(total.rests > 0, "no service was ever at rest: {total:?}");
}

#[test]
fn no_tcp_flow_of_a_service_with_affinity_moves() {
    explore(&Setup { affinity: true, ..Setup::tcp() });
}

#[test]
fn no_tcp_flow_of_a_service_that_splits_by_connection_moves() {
    explore(&Setup { split_by_ports: true, ..Setup::tcp() });
}

#[test]
fn no_tcp_flow_moves_that_was_sent_elsewhere_when_its_syn_came_again() {
    let total = explore(&Setup { retried: true, ..Setup::tcp() });
    assert!(total.retried > total.settled / 100, "{total:?}");
}

#[test]
fn no_tcp_flow_moves_where_the_canary_has_guests_or_a_cap() {
    for (guests, capped) in [(true, false), (false, true), (true, true)] {
        let total = explore(&Setup { guests, capped, ..Setup::tcp() });
        assert!(!capped || total.capped > 0, "nobody ever met the cap: {total:?}");
        assert!(total.promotions > 0 && total.closed > 0, "{total:?}");
    }
}

#[test]
fn no_tracked_udp_flow_moves() {
    let total = explore(&Setup::udp());
    assert!(total.settled > 0 && total.captured > 0 && total.promotions > 0, "{total:?}");
}

#[test]
fn untracked_datagrams_follow_the_table() {
    explore(&Setup { tracked: false, ..Setup::udp() });
}

#[test]
fn with_tables_too_small_only_flows_move_that_were_evicted() {
    for setup in [Setup::tcp(), Setup::udp()] {
        let total = explore(&Setup { flows: 6, half_open: 3, ..setup });
        assert!(0 < total.moved && total.moved <= total.evictions, "{total:?}");
    }
}

/// Breaks one rule, and expects the model to notice.
fn is_found(fault: Fault) {
    let setup = if fault.is_about_udp() { Setup::udp() } else { Setup::tcp() };
    let setup = Setup { fault: Some(fault), retried: fault.is_about_retries(), ..setup };
    let limit = 20 * CASES;
    let Some(seed) = (0..limit).find(|&seed| run(seed, &setup).is_err()) else {
        panic!("{fault:?}: no violation in {limit} histories");
    };
    println!("{fault:?}: found in history {seed}");
}

macro_rules! without {
    ($($(#[$doc:meta])* $test:ident: $fault:ident,)+) => {
        /// Each rule is there because flows move without it.
        mod without {
            use super::*;
            $($(#[$doc])* #[test] fn $test() { is_found(Fault::$fault); })+
        }
    };
}

without! {
    the_sequence_number_of_a_handshake: AnySequence,
    a_mark_on_changed_slots: UnmarkedChanges,
    marks_where_the_hash_leads_now: UnmarkedSlots,
    keeping_entries_until_both_levels_are_settled: ForgetUnsettled,
    waiting_for_handshakes: ClearInHandshake,
    keeping_entries_that_changed_while_they_were_judged: DeleteChanged,
    a_drain_time: NoDrain,
    tracking_what_the_split_has_left: ForgetTracked,
    turning_a_lapsed_lease_into_a_rollback: RenewLapsed,
    a_generation_for_each_user_of_an_id: SameGeneration,
    waiting_until_no_slot_names_an_id: ReuseAtOnce,
    keeping_the_tracked_split_when_flows_are_reset: ResetTracked,
    promotion_after_the_split_has_closed: PromoteEarly,
    knowing_every_udp_flow_of_the_canary: UdpLikeTcp,
    looking_for_handshakes_that_were_sent_elsewhere: ForgetRetries,
}
