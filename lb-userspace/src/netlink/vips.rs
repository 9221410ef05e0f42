//! Addresses of this host that are VIPs, so that the host answers ARP and ND for them.
//!
//! Linux answers ARP for every address of the host on every interface (unless `arp_ignore` says otherwise), but ND
//! only for addresses of the interface that is asked. So the caller names the interface, for both families.
//!
//! A VIP is a /32 or /128 that is never chosen as a source address: scope `host` for IPv4, deprecated (RFC 4862,
//! 5.5.4) for IPv6, without duplicate address detection, since every balancer of a fleet has it. Ours carry a mark
//! (IFA_PROTO, Linux 5.18). An address that was there without it is used, and never removed.

mod address;
mod announce;
mod driver;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    net::IpAddr,
};

use tokio::{sync::watch, task::JoinHandle};

use self::driver::Driver;
use super::{NetlinkError, request::Requests};

/// An address that an interface is to answer for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Vip {
    /// The interface that clients' packets come in by.
    pub ifindex: u32,
    /// The address.
    pub address: IpAddr,
}

/// How it stands with a VIP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VipState {
    /// The interface has it, and it is ours.
    Ours,
    /// The interface has it, and somebody else put it there.
    Foreign,
    /// The interface does not have it. It is tried again, later each time.
    Failed(VipError),
}

/// Why an interface does not have a VIP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VipError {
    /// There is no such interface now.
    NoInterface,
    /// IPv6 is off on that interface.
    Ipv6Disabled,
    /// CAP_NET_ADMIN is missing.
    Permission,
    /// Somebody removes it as soon as it is there.
    Removed,
    /// The kernel refused, with this error number.
    Refused(i32),
}

impl fmt::Display for VipError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoInterface => f.write_str("the interface does not exist"),
            Self::Ipv6Disabled => {
                f.write_str("IPv6 is off on the interface (net.ipv6.conf.<interface>.disable_ipv6)")
            }
            Self::Permission => f.write_str("not permitted; adding addresses needs CAP_NET_ADMIN"),
            Self::Removed => f.write_str("something else on this host keeps removing it"),
            Self::Refused(errno) => write!(f, "the kernel refused: {}", io::Error::from_raw_os_error(*errno)),
        }
    }
}

impl std::error::Error for VipError {}

/// Keeps VIPs on interfaces: adds what is missing, also when somebody removed it or the interface came back, and
/// announces what it added three times within two seconds (gratuitous ARP, RFC 5227; unsolicited neighbour
/// advertisements, RFC 4861, 7.2.6).
///
/// Announcing takes CAP_NET_RAW. Without it everything else works, the log says so once, and neighbours that knew
/// another owner find out when their own entries expire.
///
/// Dropping it leaves the addresses: forwarding goes on. All of our addresses in the network namespace count as its
/// own, so there can be one agent in each.
#[derive(Debug)]
pub struct Vips {
    /// The driver ends when this is dropped.
    wanted: watch::Sender<Option<BTreeSet<Vip>>>,
    states: watch::Receiver<BTreeMap<Vip, VipState>>,
    driver: JoinHandle<Requests>,
}

impl Vips {
    /// Starts as a task of the runtime that it is called in. Nothing is added or removed before the first
    /// [`Vips::set`].
    ///
    /// # Errors
    /// No subscription, or no answer from the kernel.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn follow() -> Result<Self, NetlinkError> {
        let (wanted, receiver) = watch::channel(None);
        let (sender, states) = watch::channel(BTreeMap::new());
        let driver = Driver::new(receiver, sender).map_err(NetlinkError::new("follow addresses"))?;
        Ok(Self { wanted, states, driver: tokio::spawn(driver.run()) })
    }

    /// Converges on these VIPs. Ours that are not among them are removed.
    pub fn set(&self, vips: BTreeSet<Vip>) {
        self.wanted.send_if_modified(|wanted| wanted.replace(vips.clone()) != Some(vips));
    }

    /// How it stands with each VIP that was set and tried.
    pub fn snapshot(&self) -> BTreeMap<Vip, VipState> {
        self.states.borrow().clone()
    }

    /// A receiver that wakes when something about a VIP changed.
    pub fn subscribe(&self) -> watch::Receiver<BTreeMap<Vip, VipState>> {
        self.states.clone()
    }

    /// Ends, and removes all addresses that are ours. How many they were.
    ///
    /// # Errors
    /// No answer from the kernel.
    pub async fn remove_all(self) -> Result<usize, NetlinkError> {
        drop(self.wanted);
        let ended = self.driver.await.map_err(io::Error::other);
        ended
            .and_then(|mut requests| address::remove_ours(&mut requests))
            .map_err(NetlinkError::new("remove VIPs"))
    }
}

/// Removes all addresses that are ours, when there is no agent to do it. How many they were.
///
/// # Errors
/// No answer from the kernel, or no privilege.
pub fn remove_vips() -> Result<usize, NetlinkError> {
    Requests::new()
        .and_then(|mut requests| address::remove_ours(&mut requests))
        .map_err(NetlinkError::new("remove VIPs"))
}
