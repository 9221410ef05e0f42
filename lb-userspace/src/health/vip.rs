//! Probes along the data path of the `dsr` modes: to the VIP, on one backend.
//!
//! What clients meet is a packet for the VIP that arrives at this backend's MAC, or out of this backend's tunnel. A socket of
//! the kernel cannot send that: this host has the VIP, so what is for it never leaves; and an answer that comes *from* the VIP
//! is forged in the kernel's eyes. So such probes have a TCP of their own ([`tcp`]), in this process, between two ends:
//!
//! - [`Roads::carry`] makes of each packet what the data path makes of a client's, by the same code and from the same tables;
//!   a packet socket sends it.
//! - [`wire`] receives answers by a packet socket: it sees what comes in before the kernel judges it. A filter takes only what is
//!   for the ports that these probes are from.
//!
//! The kernel's own part in it is harmless. It drops such answers for their source; and where it is told not to
//! (`accept_local`), its RST goes to the VIP, which is itself.
//!
//! Both sockets need CAP_NET_RAW. They are opened when the first such probe is due, and closed when none is wanted any more.

mod tcp;
mod udp;
mod wire;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lb_common::host::Frame;
use lb_common::verdict::Reason;
use lb_common::wire::{ETHERTYPE_IPV4, ETHERTYPE_IPV6};
use tokio::time::{Instant, sleep, timeout_at};

pub(super) use tcp::Stream;
pub(super) use udp::exchange;

use self::wire::{Seat, Wire};
use super::probe::{Failure, Miss, Trouble};

/// Which backend of which service: the way there is looked up for each packet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Via {
    /// The service's name.
    pub service: Arc<str>,
    /// The backend's own address.
    pub backend: SocketAddr,
}

/// What such probes have to know of the data path.
pub trait Roads: fmt::Debug + Send + Sync {
    /// An address of this host, of that family, that a backend can answer to.
    fn source(&self, via: &Via, v6: bool) -> Option<IpAddr>;
    /// Whether the way to a backend is known.
    fn is_open(&self, via: &Via) -> bool;
    /// Makes of a client's packet what the data path sends to that backend; the interface that it leaves by.
    ///
    /// # Errors
    /// Why it would not be sent.
    fn carry(&self, via: &Via, frame: &mut Frame) -> Result<u32, Reason>;
    /// Ports that probes may be from: nobody else here is talked to at them.
    fn ports(&self) -> RangeInclusive<u16>;
}

/// All that such probes share.
#[derive(Debug)]
pub(super) struct Along {
    roads: Arc<dyn Roads>,
    wire: Mutex<Option<Arc<Wire>>>,
}

/// The way of one probe. Dropping it gives its port back.
#[derive(Debug)]
pub(super) struct Road {
    roads: Arc<dyn Roads>,
    via: Via,
    seat: Seat,
}

/// How often it is looked whether a way has become known.
const PATIENCE: Duration = Duration::from_millis(25);

impl Along {
    pub(super) const fn new(roads: Arc<dyn Roads>) -> Self {
        Self { roads, wire: Mutex::new(None) }
    }

    /// Closes the sockets, once the probes that are under way are over.
    pub(super) fn close(&self) {
        *self.lock() = None;
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<Wire>>> {
        self.wire.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wire(&self) -> Result<Arc<Wire>, Trouble> {
        let mut open = self.lock();
        let ports = self.roads.ports();
        match &*open {
            Some(wire) if *wire.ports() == ports => Ok(Arc::clone(wire)),
            _ => {
                let wire = Wire::open(ports).map_err(|error| Trouble::PacketSocket(error.kind()))?;
                Ok(Arc::clone(open.insert(wire)))
            }
        }
    }

    /// The way of a probe to `vip` on that backend. While the backend's MAC is being asked for, it is waited for.
    ///
    /// `protocol` is TCP's or UDP's number.
    pub(super) async fn road(
        &self,
        via: &Via,
        vip: SocketAddr,
        protocol: u8,
        deadline: Instant,
    ) -> Result<Road, Miss> {
        let wire = self.wire()?;
        let opened = async {
            loop {
                let source = self.roads.source(via, vip.is_ipv6());
                if let Some(source) = source.filter(|_| self.roads.is_open(via)) {
                    return source;
                }
                sleep(PATIENCE).await;
            }
        };
        let source = match timeout_at(deadline, opened).await {
            Ok(source) => source,
            Err(_) if self.roads.is_open(via) => return Err(Trouble::NoSource.into()),
            Err(_) => return Err(Failure::Unreachable.into()),
        };
        let seat = wire.sit_down(protocol, source, vip)?;
        Ok(Road { roads: Arc::clone(&self.roads), via: via.clone(), seat })
    }
}

impl Road {
    /// This end and the VIP's.
    fn ends(&self) -> (SocketAddr, SocketAddr) {
        (self.seat.from(), self.seat.vip())
    }

    /// Sends an IP packet the way of a client's. What cannot be sent is lost, as anywhere on the way.
    fn send(&self, packet: &[u8]) {
        let ether_type = if self.seat.vip().is_ipv4() { ETHERTYPE_IPV4 } else { ETHERTYPE_IPV6 };
        let bytes = [&[0; 12][..], &ether_type.to_be_bytes(), packet].concat();
        let mut frame = Frame::new(&bytes, 0);
        match self.roads.carry(&self.via, &mut frame) {
            Ok(ifindex) => {
                if let Err(error) = self.seat.send(ifindex, frame.bytes()) {
                    tracing::debug!(via = ?self.via, ifindex, %error, "a probe's packet was not sent");
                }
            }
            Err(reason) => {
                tracing::debug!(via = ?self.via, reason = reason.name(), "a probe's packet was not sent");
            }
        }
    }
}
