//! What is known of links, routes and neighbours, and what follows from it for each destination. No sockets and no
//! clock.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, hash_map},
    net::IpAddr,
    time::{Duration, Instant},
};

use super::{NextHop, NextHopEvent, Unreachable};
use crate::netlink::{
    Link,
    neighbour::{Key, Neighbour, Resolution},
    route::{Prefix, Route},
};

/// A neighbour that the kernel does not keep is asked for again after this time, then after twice that …
const FIRST_BACK_OFF: Duration = Duration::from_millis(200);
/// … up to this.
const MAX_BACK_OFF: Duration = Duration::from_secs(30);

#[derive(Debug, Default)]
pub(super) struct Table {
    links: BTreeMap<u32, Link>,
    entries: BTreeMap<IpAddr, Entry>,
    /// The neighbours that destinations go through.
    hops: HashMap<Key, Hop>,
    /// Destinations whose way may differ from what was told.
    dirty: BTreeSet<IpAddr>,
    /// Neighbours to look up in the kernel.
    unknown: HashSet<Key>,
    /// Neighbours that the kernel shall be asked to keep, by the time from when on.
    asks: BTreeSet<(Instant, Key)>,
    /// Neighbours that no destination goes through any more.
    released: Vec<Key>,
}

#[derive(Debug, Default)]
struct Entry {
    route: Option<Result<Route, Unreachable>>,
    told: Option<Result<NextHop, Unreachable>>,
}

#[derive(Debug)]
struct Hop {
    users: BTreeSet<IpAddr>,
    mac: Option<[u8; 6]>,
    failed: bool,
    /// Nobody needs to ask: the kernel does, or it was set by hand.
    kept: bool,
    attempts: u32,
    /// Not asked for before.
    ask_from: Instant,
}

impl Table {
    /// Converges on these destinations. The ones that are new, and need a route.
    pub(super) fn set_targets(&mut self, targets: &BTreeSet<IpAddr>) -> Vec<IpAddr> {
        let gone: Vec<IpAddr> = self.entries.keys().filter(|ip| !targets.contains(ip)).copied().collect();
        for destination in gone {
            self.leave_hop(destination);
            self.entries.remove(&destination);
            self.dirty.remove(&destination);
        }
        let new: Vec<IpAddr> = targets.iter().filter(|ip| !self.entries.contains_key(ip)).copied().collect();
        self.entries.extend(new.iter().map(|&destination| (destination, Entry::default())));
        new
    }

    pub(super) fn destinations(&self) -> impl Iterator<Item = IpAddr> {
        self.entries.keys().copied()
    }

    pub(super) fn destinations_in(&self, prefix: Prefix) -> impl Iterator<Item = IpAddr> {
        self.entries.range(prefix.first..=prefix.last).map(|(&destination, _)| destination)
    }

    /// Takes the interfaces as they are now. `true` if one came, went, or changed in what routes and neighbours
    /// depend on.
    pub(super) fn set_links(&mut self, links: BTreeMap<u32, Link>, now: Instant) -> bool {
        if self.links == links {
            return false;
        }
        let before = std::mem::replace(&mut self.links, links);
        self.dirty.extend(self.entries.keys());

        let essence = |link: &Link| {
            let Link { index, up, running, carrier_ups, resolves, mac, .. } = *link;
            (index, up, running, carrier_ups, resolves, mac)
        };
        let changed = !before.values().map(essence).eq(self.links.values().map(essence));
        if changed {
            let keys: Vec<Key> = self.hops.keys().copied().collect();
            for key in keys {
                // The kernel forgets the neighbours of an interface that went down, and so do we.
                if !self.is_running(key.ifindex)
                    && let Some(hop) = self.hops.get_mut(&key)
                {
                    (hop.mac, hop.failed, hop.kept) = (None, false, false);
                }
                self.plan_ask(key, now);
            }
        }
        changed
    }

    pub(super) fn set_route(&mut self, destination: IpAddr, route: Result<Route, Unreachable>, now: Instant) {
        let Some(entry) = self.entries.get(&destination) else {
            return;
        };
        if entry.route == Some(route) {
            return;
        }
        let key = route.ok().map(|route| key_of(destination, &route));
        if self.key(destination) != key {
            self.leave_hop(destination);
            if let Some(key) = key {
                self.join_hop(destination, key, now);
            }
        }
        if let Some(entry) = self.entries.get_mut(&destination) {
            entry.route = Some(route);
        }
        self.dirty.insert(destination);
    }

    /// The neighbour that a destination goes through.
    fn key(&self, destination: IpAddr) -> Option<Key> {
        let route = self.entries.get(&destination)?.route?.ok()?;
        Some(key_of(destination, &route))
    }

    fn join_hop(&mut self, destination: IpAddr, key: Key, now: Instant) {
        let hop = match self.hops.entry(key) {
            hash_map::Entry::Occupied(hop) => hop.into_mut(),
            hash_map::Entry::Vacant(hop) => {
                self.unknown.insert(key);
                hop.insert(Hop::new(now))
            }
        };
        hop.users.insert(destination);
    }

    fn leave_hop(&mut self, destination: IpAddr) {
        let Some(key) = self.key(destination) else {
            return;
        };
        let Some(hop) = self.hops.get_mut(&key) else {
            return;
        };
        hop.users.remove(&destination);
        if hop.users.is_empty() {
            self.asks.remove(&(hop.ask_from, key));
            self.unknown.remove(&key);
            self.hops.remove(&key);
            self.released.push(key);
        }
    }

    /// A neighbour is to be looked up again. `false` if it is of no interest.
    pub(super) fn doubt(&mut self, key: Key) -> bool {
        let used = self.uses(key);
        if used {
            self.unknown.insert(key);
        }
        used
    }

    /// A neighbour whose state in the kernel is not known.
    pub(super) fn next_unknown(&self) -> Option<Key> {
        self.unknown.iter().next().copied()
    }

    /// Takes what the kernel says of a neighbour, be it of interest or not; `None` if it has no entry for it.
    pub(super) fn set_neighbour(&mut self, key: Key, neighbour: Option<Neighbour>, now: Instant) {
        let Some(hop) = self.hops.get_mut(&key) else {
            return;
        };
        self.unknown.remove(&key);
        let before = (hop.mac, hop.failed);
        match neighbour.map(|neighbour| (neighbour.resolution, neighbour.managed)) {
            None => hop.kept = false,
            Some((Resolution::Pending, managed)) => hop.kept = managed,
            Some((Resolution::Failed, managed)) => {
                (hop.mac, hop.failed, hop.kept) = (None, true, managed);
            }
            Some((Resolution::Resolved { mac, permanent }, managed)) => {
                (hop.mac, hop.failed, hop.kept) = (Some(mac), false, managed || permanent);
                hop.attempts = 0;
            }
        }
        if before != (hop.mac, hop.failed) {
            self.dirty.extend(&hop.users);
        }
        self.plan_ask(key, now);
    }

    /// Takes the kernel's whole table.
    pub(super) fn set_neighbours(&mut self, neighbours: Vec<Neighbour>, now: Instant) {
        let mut missing: HashSet<Key> = self.hops.keys().copied().collect();
        for neighbour in neighbours {
            missing.remove(&neighbour.key);
            self.set_neighbour(neighbour.key, Some(neighbour), now);
        }
        for key in missing {
            self.set_neighbour(key, None, now);
        }
    }

    fn plan_ask(&mut self, key: Key, now: Instant) {
        let wanted = !self.unknown.contains(&key) && self.is_resolving(key.ifindex);
        let Some(hop) = self.hops.get_mut(&key) else {
            return;
        };
        self.asks.remove(&(hop.ask_from, key));
        if wanted && !hop.kept {
            hop.ask_from = hop.ask_from.max(now);
            self.asks.insert((hop.ask_from, key));
        }
    }

    /// When the kernel is to be asked for a neighbour.
    pub(super) fn next_ask(&self) -> Option<Instant> {
        self.asks.first().map(|(at, _)| *at)
    }

    /// A neighbour to ask the kernel for now. It comes again, later each time, until the kernel says that it keeps
    /// it.
    pub(super) fn take_ask(&mut self, now: Instant) -> Option<Key> {
        let (_, key) = self.asks.first().copied().filter(|(at, _)| *at <= now)?;
        self.asks.pop_first();
        let hop = self.hops.get_mut(&key)?;
        hop.ask_from = now + FIRST_BACK_OFF.saturating_mul(1 << hop.attempts.min(16)).min(MAX_BACK_OFF);
        hop.attempts += 1;
        self.asks.insert((hop.ask_from, key));
        Some(key)
    }

    /// The neighbours that no destination goes through since the last call.
    pub(super) fn take_released(&mut self) -> Vec<Key> {
        let mut released = std::mem::take(&mut self.released);
        released.retain(|key| !self.hops.contains_key(key));
        released
    }

    /// If a destination goes through that neighbour.
    pub(super) fn uses(&self, key: Key) -> bool {
        self.hops.contains_key(&key)
    }

    /// Forgets everything. The neighbours that were used.
    pub(super) fn clear(&mut self) -> Vec<Key> {
        std::mem::take(self).hops.into_keys().collect()
    }

    pub(super) fn has_changes(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// A difference between what is and what was told. It counts as told then.
    pub(super) fn next_change(&mut self) -> Option<NextHopEvent> {
        while let Some(destination) = self.dirty.pop_first() {
            let Some(next_hop) = self.next_hop(destination) else {
                continue;
            };
            let Some(entry) = self.entries.get_mut(&destination) else {
                continue;
            };
            if entry.told.replace(next_hop) != Some(next_hop) {
                return Some(NextHopEvent { destination, next_hop });
            }
        }
        None
    }

    pub(super) fn snapshot(&self) -> BTreeMap<IpAddr, Result<NextHop, Unreachable>> {
        self.entries.keys().filter_map(|&ip| Some((ip, self.next_hop(ip)?))).collect()
    }

    /// `None` as long as nobody looked.
    fn next_hop(&self, destination: IpAddr) -> Option<Result<NextHop, Unreachable>> {
        Some(self.entries.get(&destination)?.route?.and_then(|route| self.follow(destination, &route)))
    }

    fn follow(&self, destination: IpAddr, route: &Route) -> Result<NextHop, Unreachable> {
        let link = self.links.get(&route.ifindex).filter(|link| link.running).ok_or(Unreachable::LinkDown)?;
        let mac = match link.resolves {
            true => Some(self.mac(key_of(destination, route))?),
            false => None,
        };
        Ok(NextHop {
            ifindex: route.ifindex,
            gateway: route.gateway,
            mac,
            mtu: route.mtu.map_or(link.mtu, |mtu| mtu.min(link.mtu)),
            source: route.source,
        })
    }

    fn mac(&self, key: Key) -> Result<[u8; 6], Unreachable> {
        match self.hops.get(&key) {
            Some(Hop { mac: Some(mac), .. }) => Ok(*mac),
            Some(Hop { failed: true, .. }) => Err(Unreachable::NoAnswer),
            _ => Err(Unreachable::Unresolved),
        }
    }

    fn is_running(&self, ifindex: u32) -> bool {
        self.links.get(&ifindex).is_some_and(|link| link.running)
    }

    fn is_resolving(&self, ifindex: u32) -> bool {
        self.links.get(&ifindex).is_some_and(|link| link.running && link.resolves)
    }
}

impl Hop {
    fn new(now: Instant) -> Self {
        Self { users: BTreeSet::new(), mac: None, failed: false, kept: false, attempts: 0, ask_from: now }
    }
}

/// The neighbour that frames to a destination are sent to.
fn key_of(destination: IpAddr, route: &Route) -> Key {
    Key { ifindex: route.ifindex, address: route.gateway.unwrap_or(destination) }
}

#[cfg(test)]
mod tests;
