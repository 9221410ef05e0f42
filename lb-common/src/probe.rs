//! A health probe along the data path: the packet of a client, which the agent is itself, to *one* backend of a `dsr` service.
//!
//! Nothing is selected: the backend is given. Everything after that is what a client's packet meets: the next hop, the room on
//! its interface, the rewriting. So a probe fails where a client would: at a backend without the VIP, behind a tunnel that
//! nobody takes apart, by a neighbour that is somebody else.

use crate::abi::{Backend, Device, FlowKey, Service, Settings};
use crate::parse;
use crate::pipeline::{Packet, Target};
use crate::verdict::Reason;

/// Makes of a client's packet what the data path sends to `backend`, which leaves by `device`; the interface's index.
///
/// `index` is that of `service`. The packet is for the service's VIP; its hardware addresses may be anything. Whether the
/// backend may be sent to at all is not asked: one that is down has to be probed, too.
///
/// # Errors
///
/// Why it would not be sent. Then the packet is as it was, but for [`Reason::NoHeadroom`].
pub fn probe<P: Packet>(
    packet: &mut P,
    settings: &Settings,
    service: &Service,
    index: u32,
    backend: &Backend,
    device: &Device,
) -> Result<u32, Reason> {
    let network = parse::network(packet)?;
    let transport = parse::transport(packet, &network)?;
    let mac = backend.next_hop().mac().ok_or(Reason::NoNeighbour)?;
    let target = Target { backend, device, mac };
    if !target.fits(service, &network) {
        return Err(Reason::TooBig);
    }
    let key = FlowKey::of_request(&network, &transport, index);
    // As the selection rule has it: the half that picks no slot.
    let spread = service.backend_hash(&key) as u32;
    target.carry(packet, settings, service, &network, spread)?;
    Ok(device.ifindex)
}
