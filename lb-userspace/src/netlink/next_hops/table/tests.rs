use super::*;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 2];

fn ip(last: u8) -> IpAddr {
    [10, 0, 0, last].into()
}

fn link(running: bool) -> BTreeMap<u32, Link> {
    let link = Link {
        index: 1,
        name: "a".into(),
        mac: Some(OTHER),
        mtu: 1500,
        up: true,
        running,
        carrier_ups: 1,
        resolves: true,
        kind: None,
        controller: None,
        vlan: None,
    };
    [(1, link)].into()
}

fn route(gateway: Option<u8>) -> Result<Route, Unreachable> {
    Ok(Route { ifindex: 1, gateway: gateway.map(ip), source: ip(1), mtu: None })
}

fn neighbour(last: u8, resolution: Resolution, managed: bool) -> (Key, Option<Neighbour>) {
    let key = Key { ifindex: 1, address: ip(last) };
    (key, Some(Neighbour { key, resolution, managed, ours: true }))
}

fn set(table: &mut Table, (key, neighbour): (Key, Option<Neighbour>), now: Instant) {
    table.set_neighbour(key, neighbour, now);
}

fn resolved(mac: [u8; 6]) -> Resolution {
    Resolution::Resolved { mac, permanent: false }
}

type MacOrWhy = Result<Option<[u8; 6]>, Unreachable>;

fn macs(table: &mut Table) -> Vec<(IpAddr, MacOrWhy)> {
    std::iter::from_fn(|| table.next_change())
        .map(|event| (event.destination, event.next_hop.map(|hop| hop.mac)))
        .collect()
}

/// Two destinations behind one gateway, and one on the link.
fn table(now: Instant) -> Table {
    let mut table = Table::default();
    assert_eq!(table.set_targets(&[ip(2), ip(3), ip(4)].into()), [ip(2), ip(3), ip(4)]);
    assert!(table.set_links(link(true), now));
    table.set_route(ip(2), route(Some(254)), now);
    table.set_route(ip(3), route(Some(254)), now);
    table.set_route(ip(4), route(None), now);
    set(&mut table, neighbour(254, resolved(MAC), true), now);
    set(&mut table, neighbour(4, resolved(MAC), true), now);
    assert_eq!(table.next_unknown(), None);
    let told = macs(&mut table);
    assert_eq!(told, [ip(2), ip(3), ip(4)].map(|ip| (ip, Ok(Some(MAC)))));
    table
}

#[test]
fn only_differences_are_told() {
    let now = Instant::now();
    let mut table = table(now);
    table.set_route(ip(2), route(Some(254)), now);
    set(&mut table, neighbour(254, resolved(MAC), true), now);
    assert!(table.set_targets(&[ip(2), ip(3), ip(4)].into()).is_empty());
    assert_eq!(macs(&mut table), vec![]);

    set(&mut table, neighbour(254, resolved(OTHER), true), now);
    set(&mut table, neighbour(254, resolved(MAC), true), now);
    assert_eq!(macs(&mut table), [], "it changed and changed back while nobody listened");
    set(&mut table, neighbour(254, resolved(OTHER), true), now);
    assert_eq!(macs(&mut table), [(ip(2), Ok(Some(OTHER))), (ip(3), Ok(Some(OTHER)))]);
}

#[test]
fn a_mac_is_kept_until_nobody_answers() {
    let now = Instant::now();
    let mut table = table(now);
    let (key, _) = neighbour(4, Resolution::Pending, true);
    table.set_neighbour(key, None, now);
    set(&mut table, neighbour(4, Resolution::Pending, true), now);
    assert_eq!(macs(&mut table), vec![]);
    set(&mut table, neighbour(4, Resolution::Failed, true), now);
    assert_eq!(macs(&mut table), [(ip(4), Err(Unreachable::NoAnswer))]);
    set(&mut table, neighbour(4, Resolution::Pending, true), now);
    assert_eq!(macs(&mut table), vec![], "asking again is no answer");
    set(&mut table, neighbour(4, resolved(OTHER), true), now);
    assert_eq!(macs(&mut table), [(ip(4), Ok(Some(OTHER)))]);
}

#[test]
fn a_link_that_goes_down_takes_its_neighbours_with_it() {
    let now = Instant::now();
    let mut table = table(now);
    assert!(table.set_links(link(false), now));
    assert_eq!(macs(&mut table), [ip(2), ip(3), ip(4)].map(|ip| (ip, Err(Unreachable::LinkDown))));
    assert!(table.set_links(link(true), now));
    assert_eq!(macs(&mut table), [ip(2), ip(3), ip(4)].map(|ip| (ip, Err(Unreachable::Unresolved))));
    assert!(table.next_ask().is_some(), "they are asked for again");
}

#[test]
fn what_the_kernel_does_not_keep_is_asked_for_later_and_later() {
    let start = Instant::now();
    let mut table = Table::default();
    table.set_links(link(true), start);
    table.set_targets(&[ip(4)].into());
    table.set_route(ip(4), route(None), start);
    assert_eq!(table.next_ask(), None, "an entry that was set by hand must not be asked for");
    let (key, _) = neighbour(4, Resolution::Pending, false);
    table.set_neighbour(key, None, start);

    let mut gaps = vec![];
    let mut now = start;
    for _ in 0..10 {
        assert_eq!(table.take_ask(now), Some(key));
        assert_eq!(table.take_ask(now), None);
        let next = table.next_ask().expect("it goes on");
        gaps.push((next - now).as_millis());
        now = next;
    }
    assert_eq!(gaps, [200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 30_000, 30_000]);

    set(&mut table, neighbour(4, Resolution::Pending, true), now);
    assert_eq!(table.next_ask(), None, "the kernel keeps it");
    table.set_neighbour(key, None, now);
    assert!(table.next_ask().is_some(), "it was deleted");
    let by_hand = Resolution::Resolved { mac: MAC, permanent: true };
    set(&mut table, neighbour(4, by_hand, false), now);
    assert_eq!(table.next_ask(), None, "it was set by hand");
}

#[test]
fn a_whole_reading_replaces_what_was_known() {
    let now = Instant::now();
    let mut table = table(now);
    let (_, other) = neighbour(254, resolved(OTHER), true);
    let (_, stranger) = neighbour(77, resolved(OTHER), false);
    table.set_neighbours([other, stranger].into_iter().flatten().collect(), now);
    assert_eq!(macs(&mut table), [ip(2), ip(3)].map(|ip| (ip, Ok(Some(OTHER)))));
    let (lost, _) = neighbour(4, Resolution::Pending, false);
    assert_eq!(table.take_ask(now), Some(lost), "the kernel has no entry for it");
}

#[test]
fn a_neighbour_is_released_with_its_last_user() {
    let now = Instant::now();
    let mut table = table(now);
    table.set_targets(&[ip(3), ip(4)].into());
    assert_eq!(table.take_released(), []);
    table.set_route(ip(3), route(Some(253)), now);
    assert_eq!(table.take_released(), [Key { ifindex: 1, address: ip(254) }]);
    table.set_route(ip(3), Err(Unreachable::NoRoute), now);
    table.set_route(ip(3), route(Some(253)), now);
    assert_eq!(table.take_released(), [], "it went and came back");
    table.set_targets(&BTreeSet::new());
    assert_eq!(table.take_released().len(), 2);
    assert_eq!(table.snapshot(), BTreeMap::new());
}

#[test]
fn the_route_may_limit_the_mtu_of_the_link() {
    let now = Instant::now();
    let mut table = table(now);
    for (mtu, expected) in [(None, 1500), (Some(1400), 1400), (Some(9000), 1500)] {
        table.set_route(ip(4), route(None).map(|route| Route { mtu, ..route }), now);
        assert_eq!(table.snapshot()[&ip(4)].map(|hop| hop.mtu), Ok(expected));
    }
}
