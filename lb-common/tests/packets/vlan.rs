//! Between VLANs: whatever becomes of a packet, it leaves with the tags of the device that leads on.

use lb_common::abi::{Device, Mode, NextHop};
use lb_common::host::Tables;
use lb_common::pipeline::Route;
use lb_common::verdict::Reason;
use lb_common::vlan::{Tags, Vlan};
use lb_common::wire::{ETHERTYPE_QINQ, ETHERTYPE_VLAN};

use crate::lab::{KINDS, Lab, Packet, TAGS, backend, client, send, vip};

/// A VLAN device on the lab's interface.
const DEVICE: u32 = 9;
const MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x09];

fn tags(of: &[u16]) -> Tags {
    match of {
        [outer, inner] => {
            Tags::NONE.with(ETHERTYPE_QINQ, *outer).unwrap().with(ETHERTYPE_VLAN, *inner).unwrap()
        }
        of => of.iter().fold(Tags::NONE, |tags, id| tags.with(ETHERTYPE_VLAN, *id).unwrap()),
    }
}

/// Puts the backend, and the clients, behind a device with these tags.
fn behind(lab: &mut Lab, out: &[u16]) {
    let tables = &mut lab.tables;
    tables.devices.push(Device { ifindex: DEVICE, mtu: 1500, mac: MAC, pad: 0 });
    tables.backends[usize::from(lab.id)].next_hop = NextHop::of(lab.mac, 1).0;
    tables.default_route = Route::Out { ifindex: DEVICE, source: MAC, destination: Tables::ROUTER };
    tables.vlans = [
        (Tables::IFINDEX, Vlan { ifindex: Tables::IFINDEX, tags: 0 }),
        (DEVICE, Vlan { ifindex: Tables::IFINDEX, tags: tags(out).0 }),
    ]
    .into();
}

/// A frame without tags, with these: those that are in the place of others have priority 5, as the lab's packets.
fn with_tags(frame: &[u8], out: &[u16], came: &[u16]) -> Vec<u8> {
    let mut tagged = frame[..12].to_vec();
    for (i, id) in out.iter().enumerate() {
        let kind = if i + 1 < out.len() { ETHERTYPE_QINQ } else { ETHERTYPE_VLAN };
        let priority = if i < came.len() { 5 << 13 } else { 0 };
        tagged.extend(kind.to_be_bytes());
        tagged.extend((id | priority).to_be_bytes());
    }
    tagged.extend(&frame[12..]);
    tagged
}

/// Sends a packet with every kind of tags into tables that are made anew; what comes out has to be what comes out of it
/// without tags on either side, but for the tags.
fn crosses(packet: &Packet, reason: Reason, lab: impl Fn() -> Lab) {
    for out in TAGS {
        let mut plain = lab();
        behind(&mut plain, &[]);
        let (verdict, expected) = send(&plain.tables, &packet.frame());
        assert_eq!((verdict.reason, verdict.ifindex), (reason, Tables::IFINDEX));
        for came in TAGS {
            let mut lab = lab();
            behind(&mut lab, out);
            let (verdict, frame) = send(&lab.tables, &Packet { tags: came, ..packet.clone() }.frame());
            assert_eq!((verdict.reason, verdict.ifindex), (reason, Tables::IFINDEX), "{came:?} -> {out:?}");
            assert_eq!(frame, with_tags(&expected, out, came), "{came:?} -> {out:?}");
        }
    }
}

#[test]
fn requests_leave_in_the_vlan_of_their_backend_in_every_mode() {
    for mode in [Mode::Nat, Mode::DsrL2, Mode::DsrIpip, Mode::DsrGue] {
        for (v6, udp) in KINDS {
            for outer_v6 in [false, true] {
                let port = if mode == Mode::Nat { 8443 } else { 443 };
                if mode == Mode::Nat && outer_v6 != v6 {
                    continue;
                }
                let request = Packet::of(udp, client(v6), (vip(v6), 443).into());
                crosses(&request, Reason::Forwarded, || Lab::new(mode, udp, v6, backend(outer_v6, port)));
            }
        }
    }
}

#[test]
fn replies_leave_in_the_vlan_that_the_route_says() {
    for (v6, udp) in KINDS {
        let reply = Packet::of(udp, backend(v6, 8443), client(v6));
        crosses(&reply, Reason::Replied, || Lab::new(Mode::Nat, udp, v6, backend(v6, 8443)));
    }
}

#[test]
fn sessions_of_full_nat_cross_vlans_both_ways() {
    for (v6, udp) in KINDS {
        let mut request = Packet::of(udp, client(v6), (vip(v6), 443).into());
        if let Some(header) = &mut request.tcp {
            (header.syn, header.ack) = (true, false);
        }
        crosses(&request, Reason::Forwarded, || Lab::new(Mode::FullNat, udp, v6, backend(v6, 8443)));
        // The answer, to the port that stands for the client.
        let begun = || {
            let mut lab = Lab::new(Mode::FullNat, udp, v6, backend(v6, 8443));
            behind(&mut lab, &[]);
            let (verdict, frame) = send(&lab.tables, &request.frame());
            assert_eq!(verdict.reason, Reason::Forwarded);
            lab.tables.devices.truncate(1);
            let l4 = if v6 { 54 } else { 34 };
            (lab, u16::from_be_bytes([frame[l4], frame[l4 + 1]]))
        };
        let source = if v6 { Tables::SOURCE_V6 } else { Tables::SOURCE_V4 };
        let mut reply = Packet::of(udp, backend(v6, 8443), (source, begun().1).into());
        if let Some(header) = &mut reply.tcp {
            (header.syn, header.ack) = (true, true);
        }
        crosses(&reply, Reason::Replied, || begun().0);
    }
}

#[test]
fn what_goes_back_keeps_its_tags() {
    for (v6, _) in KINDS.into_iter().step_by(2) {
        for came in TAGS {
            let mut lab = Lab::new(Mode::Nat, false, v6, backend(v6, 8443));
            behind(&mut lab, &[8]);
            // Nobody takes it: a RST.
            for slot in &lab.tables.slots {
                slot.set(lb_common::abi::Slot::default());
            }
            let request = Packet { tags: came, ..Packet::tcp(client(v6), (vip(v6), 443).into()) };
            let (verdict, frame) = send(&lab.tables, &request.frame());
            assert_eq!((verdict.reason, verdict.ifindex), (Reason::Reset, Tables::IFINDEX));
            assert_eq!(frame[12..14 + 4 * came.len()], request.frame()[12..14 + 4 * came.len()]);
        }
    }
}

#[test]
fn without_vlan_devices_tags_stay_as_they_are() {
    for came in TAGS {
        let lab = Lab::new(Mode::DsrL2, false, false, backend(false, 443));
        let request = Packet { tags: came, ..Packet::tcp(client(false), (vip(false), 443).into()) };
        request.becomes(&lab.tables, Reason::Forwarded, &request.clone().sent(lab.mac));
    }
}
