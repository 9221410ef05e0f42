use lb_common::abi::{Address, Port};
use lb_common::host::Frame;
use lb_common::trace::Filter;
use lb_common::wire::{IPPROTO_TCP, IPPROTO_UDP};

use crate::lab::{KINDS, Packet, client, vip};

const ALL: Address = Address::of_wire_words([u32::MAX; 4]);

#[test]
fn a_filter_matches_either_end_and_nothing_else() {
    for (v6, udp) in KINDS {
        let client = client(v6);
        let frame = Packet::of(udp, client, (vip(v6), 443).into()).frame();
        let frame = Frame::new(&frame, 1);
        let matches = |filter: Filter| filter.matches(&frame);
        let host = |ip: std::net::IpAddr| Filter { address: ip.into(), mask: ALL, ..Filter::default() };
        assert!(matches(Filter::default()));
        assert!(matches(host(client.ip())) && matches(host(vip(v6))));
        assert!(
            !matches(host("192.0.2.99".parse().unwrap())) && !matches(host("2001:db8:99::".parse().unwrap()))
        );
        let port = |port| Filter { port: Port::new(port), ..Filter::default() };
        assert!(matches(port(443)) && matches(port(client.port())) && !matches(port(444)));
        let protocol = |protocol| Filter { protocol, ..Filter::default() };
        assert_eq!((matches(protocol(IPPROTO_UDP)), matches(protocol(IPPROTO_TCP))), (udp, !udp));
        assert!(!matches(Filter { port: Port::new(444), ..host(client.ip()) }), "all of it counts");
    }
}

#[test]
fn what_is_not_ip_is_matched_by_no_condition_only() {
    let frame = Frame::new(&[0xff; 60], 1);
    assert!(Filter::default().matches(&frame));
    assert!(!Filter { protocol: IPPROTO_TCP, ..Filter::default() }.matches(&frame));
}
