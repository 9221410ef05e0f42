//! The way to a set of destinations: interface, gateway, source address, MTU and MAC, followed.

mod driver;
mod table;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};

use self::{driver::Driver, table::Table};
use super::{NetlinkError, neighbour::release, request::Requests};

/// Where frames to a destination go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// The interface that they leave by.
    pub ifindex: u32,
    /// The router that they go to; `None` if the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// The MAC of the router or the destination; `None` on links that have no use for one.
    pub mac: Option<[u8; 6]>,
    /// The longest IP packet that this way takes as far as this host knows, in bytes.
    pub mtu: u32,
    /// The address that this host would send from.
    pub source: IpAddr,
}

/// Why frames to a destination go nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreachable {
    /// No route leads there.
    NoRoute,
    /// A route forbids it (`prohibit`, `blackhole`).
    Prohibited,
    /// It is a multicast or broadcast address.
    NotUnicast,
    /// It is an address of this host.
    Local,
    /// This host has no address to send from.
    NoSource,
    /// The interface of the route is down, or has no carrier.
    LinkDown,
    /// Its MAC is being asked for.
    Unresolved,
    /// Nobody answers for it on the link. The kernel asks again every few seconds.
    NoAnswer,
}

impl Unreachable {
    /// The name in events and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoRoute => "no_route",
            Self::Prohibited => "prohibited",
            Self::NotUnicast => "not_unicast",
            Self::Local => "local",
            Self::NoSource => "no_source",
            Self::LinkDown => "link_down",
            Self::Unresolved => "unresolved",
            Self::NoAnswer => "no_answer",
        }
    }
}

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoRoute => "no route leads there",
            Self::Prohibited => "a route forbids it",
            Self::NotUnicast => "it is a multicast or broadcast address",
            Self::Local => "it is an address of this host",
            Self::NoSource => "this host has no address to send from",
            Self::LinkDown => "the interface that leads there is down",
            Self::Unresolved => "its MAC address is being asked for",
            Self::NoAnswer => "nobody answers for it on the link",
        })
    }
}

/// The way to a destination is another one now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextHopEvent {
    /// The destination, one of those set.
    pub destination: IpAddr,
    /// The way there, or why there is none.
    pub next_hop: Result<NextHop, Unreachable>,
}

/// Follows the way to a set of destinations, and has the kernel keep their neighbours resolved (managed neighbours,
/// Linux 5.16).
///
/// A MAC is kept until the kernel found that nobody answers: an entry that is gone from the kernel's table, or asked
/// for anew, says nothing against the MAC that it had.
///
/// Dropping it leaves the kernel's neighbours managed, so that an agent that is restarted finds them resolved. The
/// next one that is started in the same network namespace releases those that it has no use for;
/// [`NextHops::release`] releases them all.
#[derive(Debug)]
pub struct NextHops {
    table: Arc<Mutex<Table>>,
    /// The driver ends when this is dropped.
    targets: watch::Sender<BTreeSet<IpAddr>>,
    driver: JoinHandle<Requests>,
}

impl NextHops {
    /// Starts without destinations, as a task of the runtime that it is called in. Each destination gets an event
    /// when it was first looked at, and then for each difference. While nobody receives, the changes of a destination
    /// are merged into the last. It ends when the receiver is dropped.
    ///
    /// # Errors
    /// No subscription, or no answer from the kernel.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn follow(events: mpsc::Sender<NextHopEvent>) -> Result<Self, NetlinkError> {
        let table = Arc::new(Mutex::new(Table::default()));
        let (targets, receiver) = watch::channel(BTreeSet::new());
        let driver = Driver::new(Arc::clone(&table), receiver, events)
            .map_err(NetlinkError::new("follow routes and neighbours"))?;
        Ok(Self { table, targets, driver: tokio::spawn(driver.run()) })
    }

    /// Converges on these destinations.
    pub fn set_targets(&self, targets: BTreeSet<IpAddr>) {
        self.targets.send_if_modified(|known| {
            let changed = *known != targets;
            *known = targets;
            changed
        });
    }

    /// All destinations that were looked at, with the way there.
    pub fn snapshot(&self) -> BTreeMap<IpAddr, Result<NextHop, Unreachable>> {
        lock(&self.table).snapshot()
    }

    /// Ends, and leaves the neighbours to the kernel's usual care.
    ///
    /// # Errors
    /// No answer from the kernel.
    pub async fn release(self) -> Result<(), NetlinkError> {
        drop(self.targets);
        let doing = "release neighbours";
        let ended = self.driver.await.map_err(io::Error::other);
        let mut requests = ended.map_err(NetlinkError::new(doing))?;
        let keys = lock(&self.table).clear();
        for key in keys {
            release(&mut requests, key).map_err(NetlinkError::new(doing))?;
        }
        Ok(())
    }
}

fn lock(table: &Mutex<Table>) -> MutexGuard<'_, Table> {
    // What a panic leaves half done is mended by the next reading.
    table.lock().unwrap_or_else(PoisonError::into_inner)
}
