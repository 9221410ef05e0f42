//! Which flows an answer or a first byte is awaited of: so that all other replies of a service whose handshakes are looked at need no
//! look-up of `HANDSHAKES`.
//!
//! `AWAITED` has places; the keyed hash of a flow says which one is its own, and what it writes there, its *tag*. A place is
//!
//! - 0: no flow of this place is awaited;
//! - a tag: at most the flow of this tag is;
//! - [`SHARED`] and anything: several have written there, and each reply has to look.
//!
//! It errs on one side only: whoever has an entry finds its tag, or a place that is shared. Writing is a compare-and-swap of 0 for the
//! tag; whoever finds anything else shares the place, his own tag included: another flow of the same hash may have left it. So
//! a flow that is over takes away its own tag, and nobody else's.
//!
//! The agent's sweep makes shared places single or empty again, by compare-and-swap with what it saw before it read
//! `HANDSHAKES`: each flow that shares a place adds 1 to it, so that one which comes meanwhile is not lost. Without an agent
//! more and more places are shared, and replies cost what they would cost without this.

use crate::abi::{FlowKey, Service};
use crate::pipeline::Tables;

/// Places, one word each: 256 KiB.
pub const PLACES: u32 = 1 << PLACE_BITS;
const PLACE_BITS: u32 = 15;

/// Several flows have written here.
pub const SHARED: u64 = 1 << 63;
/// A tag has no bit above these: adding 1 for each flow never reaches [`SHARED`].
const TAG_MASK: u64 = (1 << 62) - 1;

/// Where a flow writes, and what.
#[must_use]
#[inline(always)]
pub fn place(service: &Service, key: &FlowKey) -> (u32, u64) {
    let hash = service.backend_keys.hash(key.client.words(), key.ports());
    ((hash >> (64 - PLACE_BITS)) as u32, hash & TAG_MASK | 1)
}

/// Something is awaited of a flow. Its entry is there already.
#[inline(always)]
pub fn begins<T: Tables>(tables: &T, service: &Service, key: &FlowKey) {
    let (index, tag) = place(service, key);
    if tables.awaited(index) != 0 || !tables.swap_awaited(index, 0, tag) {
        tables.share_awaited(index);
    }
}

/// Nothing is awaited of a flow any more. Its entry is yet to go.
#[inline(always)]
pub fn ends<T: Tables>(tables: &T, service: &Service, key: &FlowKey) {
    let (index, tag) = place(service, key);
    if tables.awaited(index) == tag {
        tables.swap_awaited(index, tag, 0);
    }
}

/// Whether something may be awaited of a flow.
#[must_use]
#[inline(always)]
pub fn is<T: Tables>(tables: &T, service: &Service, key: &FlowKey) -> bool {
    let (index, tag) = place(service, key);
    let word = tables.awaited(index);
    word == tag || word & SHARED != 0
}

/// What a shared place becomes, which was `seen` before its entries were read: these are the tags of them. `None`: it stays.
#[must_use]
pub fn cleared(seen: u64, tags: &[u64]) -> Option<u64> {
    match tags {
        _ if seen & SHARED == 0 => None,
        [] => Some(0),
        [tag] => Some(*tag),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::Mode;
    use crate::host::{ServiceSpec, Tables};
    use proptest::prelude::*;
    use std::collections::HashSet;
    use std::sync::OnceLock;

    fn tables() -> Tables {
        let mut tables = Tables::new();
        tables.add_service(&ServiceSpec::tcp("203.0.113.10".parse().unwrap(), 443, Mode::Nat));
        tables
    }

    fn flow(port: u16) -> FlowKey {
        FlowKey {
            client: std::net::Ipv4Addr::new(198, 51, 100, 1).into(),
            client_port: crate::abi::Port::new(port),
            port: crate::abi::Port::new(443),
            owner: 0,
        }
    }

    /// As the agent does it, in these places.
    fn sweep(
        tables: &Tables,
        places: impl Iterator<Item = u32>,
        entries: &HashSet<u16>,
        meanwhile: impl FnOnce(),
    ) {
        let seen: Vec<(u32, u64)> =
            places.map(|index| (index, crate::pipeline::Tables::awaited(tables, index))).collect();
        let service = tables.services[0];
        let held: Vec<_> = entries.iter().map(|&port| place(&service, &flow(port))).collect();
        meanwhile();
        for (index, seen) in seen {
            let tags: Vec<u64> = held.iter().filter(|(at, _)| *at == index).map(|&(_, tag)| tag).collect();
            if let Some(next) = cleared(seen, &tags) {
                crate::pipeline::Tables::swap_awaited(tables, index, seen, next);
            }
        }
    }

    #[test]
    fn tags_never_look_like_shared_places() {
        let tables = tables();
        for port in 1..if cfg!(miri) { 100 } else { 10_000 } {
            let (index, tag) = place(&tables.services[0], &flow(port));
            assert!(index < PLACES && tag != 0 && tag & SHARED == 0, "{port}");
        }
    }

    #[test]
    fn replies_of_settled_flows_need_not_look() {
        // Under Miri a hash takes a millisecond.
        const FLOWS: u16 = if cfg!(miri) { 50 } else { 1000 };
        let tables = tables();
        let service = tables.services[0];
        for port in 1..=FLOWS {
            begins(&tables, &service, &flow(port));
        }
        for port in 1..=FLOWS {
            assert!(is(&tables, &service, &flow(port)));
            ends(&tables, &service, &flow(port));
        }
        let looks = |tables: &Tables| (1..=FLOWS).filter(|&port| is(tables, &service, &flow(port))).count();
        assert!(looks(&tables) < 60, "a thousand of 32 768 places: {} are shared", looks(&tables));
        let places = (1..=FLOWS).map(|port| place(&service, &flow(port)).0);
        sweep(&tables, places, &HashSet::new(), || {});
        assert_eq!(looks(&tables), 0);
    }

    /// Flows in two places, of which the first two share one.
    fn neighbours(service: &Service) -> ([u16; 3], [u32; 2]) {
        // Looked for once: it takes some ten thousand hashes.
        static SECOND: OnceLock<u16> = OnceLock::new();
        let at = |port| place(service, &flow(port)).0;
        let first = at(1);
        let second = *SECOND.get_or_init(|| (2..).find(|&port| at(port) == first).expect("a second one"));
        let other = if second == 2 { 3 } else { 2 };
        ([1, second, other], [first, at(other)])
    }

    proptest! {
        /// Few flows in few places, which begin, end and are swept in any order.
        #[test]
        fn whoever_is_awaited_is_found(steps in prop::collection::vec((0u8..4, 0usize..6, 0usize..6), 1..200)) {
            let tables = tables();
            let service = tables.services[0];
            let (at, places) = neighbours(&service);
            let places = || places.into_iter();
            let mut entries = HashSet::new();
            for (what, n, m) in steps {
                let (one, other) = (at[n % at.len()], at[m % at.len()]);
                match what {
                    0 => {
                        entries.insert(one);
                        begins(&tables, &service, &flow(one));
                    }
                    1 => {
                        ends(&tables, &service, &flow(one));
                        entries.remove(&one);
                    }
                    2 => sweep(&tables, places(), &entries, || {}),
                    _ => {
                        let before = entries.clone();
                        sweep(&tables, places(), &before, || begins(&tables, &service, &flow(other)));
                        entries.insert(other);
                    }
                }
                for port in &entries {
                    prop_assert!(is(&tables, &service, &flow(*port)), "{port} of {entries:?}");
                }
            }
        }
    }
}
