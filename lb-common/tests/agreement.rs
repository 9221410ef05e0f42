//! I5: two balancers with the same seed and configuration choose the same backend for the same flow, whatever ids and
//! indexes each of them has given away, and in whatever order they read their lists.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use lb_common::abi::{FlowKey, Mode, Port};
use lb_common::host::{ServiceSpec, Tables};
use lb_common::parse::Kind;
use lb_common::select::select;
use proptest::prelude::*;

const VIP: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);

fn backends(weights: &[u16], network: u8) -> Vec<(SocketAddr, u16)> {
    (1..).map(|n| (Ipv4Addr::new(10, 0, network, n), 8443).into()).zip(weights.iter().copied()).collect()
}

/// Where a flow goes, by address: ids are each balancer's own.
fn destination(tables: &Tables, service: u32, client: IpAddr, port: u16) -> Option<IpAddr> {
    let key =
        FlowKey { client: client.into(), client_port: Port::new(port), port: Port::new(443), owner: service };
    let choice = select(tables, &tables.services[service as usize], &key, Kind::Syn(1))
        .expect("a table that is there");
    (choice.backend != 0).then(|| tables.backends[usize::from(choice.backend)].address.into())
}

proptest! {
    #[test]
    fn the_same_configuration_is_the_same_choice(
        stable in prop::collection::vec(0..100u16, 1..12),
        canary in prop::collection::vec(0..100u16, 1..4),
        share in any::<u32>(),
        flags in 0..8u16,
        clients in prop::collection::vec((any::<u32>(), any::<u16>()), 50),
    ) {
        let spec = ServiceSpec { flags, table_size: 251, ..ServiceSpec::tcp(VIP.into(), 443, Mode::DsrL2) };
        let (stable, canary) = (backends(&stable, 1), backends(&canary, 2));
        let mut one = Tables::new();
        let service = one.add_service(&spec);
        one.add_pool(service, false, &stable);
        one.add_pool(service, true, &canary);
        one.set_split(service, share);

        // The other one has other indexes and ids, and read its lists backwards.
        let mut other = Tables::new();
        let before = other.add_service(&ServiceSpec::tcp(Ipv6Addr::LOCALHOST.into(), 80, Mode::DsrL2));
        other.add_pool(before, false, &backends(&[1, 2, 3], 3));
        let service_there = other.add_service(&spec);
        let backwards = |list: &[(SocketAddr, u16)]| list.iter().rev().copied().collect::<Vec<_>>();
        other.add_pool(service_there, true, &backwards(&canary));
        other.add_pool(service_there, false, &backwards(&stable));
        other.set_split(service_there, share);

        for (client, port) in clients {
            let client = Ipv4Addr::from_bits(client).into();
            prop_assert_eq!(
                destination(&one, service, client, port),
                destination(&other, service_there, client, port)
            );
        }
    }
}
