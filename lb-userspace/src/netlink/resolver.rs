//! Single neighbours, asked for on demand.

use std::{
    collections::HashSet,
    net::IpAddr,
    time::{Duration, Instant},
};

use super::{
    NetlinkError,
    neighbour::{Key, resolve_once},
    request::Requests,
};

/// The same neighbour is asked for no more often than this …
const WINDOW: Duration = Duration::from_secs(1);
/// … and no more of them in that time: who makes us ask is whoever sends us packets, and the kernel's table is small
/// (`net.ipv4.neigh.default.gc_thresh3`, 1 024 by default).
const MAX_ASKED: usize = 256;

/// Has the kernel resolve a neighbour, once.
///
/// # Errors
/// No such interface, one without addresses of that family, a full neighbour table, or no privilege.
pub fn resolve(ifindex: u32, address: IpAddr) -> Result<(), NetlinkError> {
    Requests::new()
        .and_then(|mut requests| resolve_once(&mut requests, Key { ifindex, address }))
        .map_err(NetlinkError::new("resolve a neighbour"))
}

/// What became of a wish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// The kernel resolves it.
    Now,
    /// It was asked for within the last second.
    AlreadyAsked,
    /// 256 were asked for within the last second.
    TooMany,
}

/// Has the kernel resolve neighbours, as many and as often as is good for it.
#[derive(Debug)]
pub struct Resolver {
    requests: Requests,
    recent: Recent,
}

impl Resolver {
    /// Opens a socket.
    ///
    /// # Errors
    /// There is none.
    pub fn new() -> Result<Self, NetlinkError> {
        let requests = Requests::new().map_err(NetlinkError::new("ask"))?;
        Ok(Self { requests, recent: Recent { since: Instant::now(), keys: HashSet::new() } })
    }

    /// Has the kernel resolve a neighbour, once.
    ///
    /// # Errors
    /// Those of [`resolve`].
    pub fn resolve(&mut self, ifindex: u32, address: IpAddr) -> Result<Asked, NetlinkError> {
        let key = Key { ifindex, address };
        let asked = self.recent.note(key, Instant::now());
        if asked == Asked::Now {
            resolve_once(&mut self.requests, key).map_err(NetlinkError::new("resolve a neighbour"))?;
        }
        Ok(asked)
    }
}

#[derive(Debug)]
struct Recent {
    since: Instant,
    keys: HashSet<Key>,
}

impl Recent {
    fn note(&mut self, key: Key, now: Instant) -> Asked {
        if now.saturating_duration_since(self.since) >= WINDOW {
            self.since = now;
            self.keys.clear();
        }
        if self.keys.contains(&key) {
            return Asked::AlreadyAsked;
        }
        if self.keys.len() >= MAX_ASKED {
            return Asked::TooMany;
        }
        self.keys.insert(key);
        Asked::Now
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, net::Ipv4Addr};

    use super::*;
    use crate::netlink::testing::{Pair, eventually, in_namespace, ip_output};

    #[test]
    fn a_neighbour_is_asked_for_once_a_second_and_a_flood_of_them_is_cut() {
        let start = Instant::now();
        let mut recent = Recent { since: start, keys: HashSet::new() };
        let key = |n: u32| Key { ifindex: 1, address: Ipv4Addr::from_bits(n).into() };
        assert_eq!(recent.note(key(0), start), Asked::Now);
        assert_eq!(recent.note(key(0), start), Asked::AlreadyAsked);
        let asked = (1..1000).filter(|&n| recent.note(key(n), start) == Asked::Now).count();
        assert_eq!(asked, MAX_ASKED - 1);
        assert_eq!(recent.note(key(2000), start), Asked::TooMany);
        assert_eq!(recent.note(key(0), start + WINDOW), Asked::Now);
    }

    #[test]
    fn the_kernel_resolves_what_it_is_asked_for() {
        in_namespace(async |peer| {
            let pair = Pair::new(peer);
            let resolver = RefCell::new(Resolver::new().expect("a socket"));
            for address in ["10.0.0.2", "fd00::2"] {
                let resolved = format!("{address} dev a lladdr 02:00:00:00:00:0b");
                let ip: IpAddr = address.parse().expect("an address");
                // As the kernel program does: with every packet that needs it.
                eventually(|| {
                    let asked = resolver.borrow_mut().resolve(pair.ifindex, ip);
                    assert_ne!(asked.expect("the kernel takes it"), Asked::TooMany);
                    ip_output("neigh").contains(&resolved)
                })
                .await;
            }
            let error =
                resolve(9999, "10.0.0.2".parse().expect("an address")).expect_err("no such interface");
            assert!(!error.is_permission(), "{error}");
        });
    }
}
