//! What a probe along the data path becomes is what a client's packet becomes, byte for byte.

use lb_common::abi::{Mode, NextHop};
use lb_common::host::{self, Tables};
use lb_common::probe::probe;
use lb_common::verdict::Reason;

use crate::lab::{KINDS, Lab, Packet, TAGS, backend, client, vip};

/// Sends a packet to the lab's one backend as a probe.
fn probed(lab: &Lab, packet: &Packet) -> (Result<u32, Reason>, Vec<u8>) {
    let tables = &lab.tables;
    let (service, backend) = (&tables.services[lab.service as usize], &tables.backends[usize::from(lab.id)]);
    let device = &tables.devices[usize::from(backend.next_hop().device())];
    let mut frame = host::Frame::new(&packet.frame(), 0);
    let sent = probe(&mut frame, &tables.settings, service, lab.service, backend, device);
    (sent, frame.bytes().to_vec())
}

fn request(udp: bool, v6: bool) -> Packet {
    Packet::of(udp, client(v6), (vip(v6), 443).into())
}

#[test]
fn a_probe_becomes_what_a_clients_packet_becomes() {
    for mode in [Mode::DsrL2, Mode::DsrIpip, Mode::DsrGue] {
        for (v6, udp) in KINDS {
            for outer_v6 in [false, true] {
                for tags in TAGS {
                    let lab = Lab::new(mode, udp, v6, backend(outer_v6, 443));
                    let packet = Packet { tags, tos: 0xbb, ..request(udp, v6) };
                    let (verdict, frame) = packet.through(&lab.tables);
                    assert_eq!(verdict.reason, Reason::Forwarded);
                    assert_eq!(probed(&lab, &packet), (Ok(Tables::IFINDEX), frame));
                }
            }
        }
    }
}

#[test]
fn a_backend_that_is_down_is_probed_all_the_same() {
    let mut lab = Lab::new(Mode::DsrL2, false, false, backend(false, 443));
    let up = probed(&lab, &request(false, false));
    lab.tables.backends[usize::from(lab.id)].life = 0;
    request(false, false).ends(&lab.tables, Reason::BackendGone);
    assert_eq!(probed(&lab, &request(false, false)), up);
}

#[test]
fn a_probe_is_not_sent_where_a_clients_packet_would_not_be() {
    let mut lab = Lab::new(Mode::DsrIpip, false, false, backend(true, 443));
    // 40 bytes of the outer header leave too few.
    let long = Packet { payload: vec![0; 1440], ..request(false, false) };
    assert_eq!(probed(&lab, &long), (Err(Reason::TooBig), long.frame()));
    lab.tables.backends[usize::from(lab.id)].next_hop = NextHop::default().0;
    let packet = request(false, false);
    assert_eq!(probed(&lab, &packet), (Err(Reason::NoNeighbour), packet.frame()));
    let mut frame = packet.frame();
    frame[12] = 0;
    let mut frame = host::Frame::new(&frame, 0);
    let (service, backend) = (&lab.tables.services[0], &lab.tables.backends[1]);
    let sent = probe(&mut frame, &lab.tables.settings, service, 0, backend, &lab.tables.devices[0]);
    assert_eq!(sent, Err(Reason::NotIp));
}
