//! VLAN devices: routes lead to them, frames leave by what is below them, with their tags.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::vlan::{Tags, Vlan};

use crate::netlink::Link;

/// What an interface's frames leave by, and with which tags; `None` if it is none that XDP can send by: more than two tags, or
/// what is below is in another network namespace.
pub(super) fn below(links: &BTreeMap<u32, Link>, ifindex: u32) -> Option<Vlan> {
    let mut found = Vec::new();
    let mut index = ifindex;
    loop {
        let link = links.get(&index)?;
        match link.vlan {
            Some(on) if found.len() < 2 => {
                found.push((on.ether_type, on.id));
                index = on.parent;
            }
            Some(_) => return None,
            None if link.kind.as_deref() == Some("vlan") => return None,
            None => break,
        }
    }
    // The lowest device's tag is the outermost.
    let tags =
        found.iter().rev().try_fold(Tags::NONE, |tags, (ether_type, id)| tags.with(*ether_type, *id))?;
    Some(Vlan { ifindex: index, tags: tags.0 })
}

/// What `VLANS` should hold: every VLAN device on one of these interfaces, and the interfaces themselves, whose own frames have
/// no tag. Nothing if there is no such device: then tags stay as they are.
pub(super) fn table(links: &BTreeMap<u32, Link>, interfaces: &BTreeSet<u32>) -> BTreeMap<u32, Vlan> {
    let mut table: BTreeMap<u32, Vlan> = links
        .values()
        .filter(|link| link.vlan.is_some())
        .filter_map(|link| Some((link.index, below(links, link.index)?)))
        .filter(|(_, vlan)| interfaces.contains(&vlan.ifindex))
        .collect();
    if !table.is_empty() {
        let own = interfaces.iter().filter(|ifindex| !table.contains_key(ifindex));
        let own: Vec<_> = own.map(|&ifindex| (ifindex, Vlan { ifindex, tags: Tags::NONE.0 })).collect();
        table.extend(own);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::VlanOn;

    fn link(index: u32, vlan: Option<(u32, u16, u16)>) -> (u32, Link) {
        let link = Link {
            index,
            name: format!("link{index}"),
            mac: Some([2, 0, 0, 0, 0, 1]),
            mtu: 1500,
            up: true,
            running: true,
            carrier_ups: 1,
            resolves: true,
            kind: vlan.map(|_| "vlan".to_owned()),
            controller: None,
            vlan: vlan.map(|(parent, ether_type, id)| VlanOn { parent, ether_type, id }),
        };
        (index, link)
    }

    fn tags(of: &[(u16, u16)]) -> u32 {
        of.iter().fold(Tags::NONE, |tags, (ether_type, id)| tags.with(*ether_type, *id).unwrap()).0
    }

    #[test]
    fn a_vlan_device_leads_to_the_card_with_the_lowest_tag_outermost() {
        let links = BTreeMap::from([
            link(1, None),
            link(2, Some((1, 0x88a8, 7))),
            link(3, Some((2, 0x8100, 100))),
            link(4, Some((3, 0x8100, 5))),
            link(5, Some((9, 0x8100, 5))),
        ]);
        assert_eq!(below(&links, 1), Some(Vlan { ifindex: 1, tags: 0 }));
        assert_eq!(below(&links, 2), Some(Vlan { ifindex: 1, tags: tags(&[(0x88a8, 7)]) }));
        let both = tags(&[(0x88a8, 7), (0x8100, 100)]);
        assert_eq!(below(&links, 3), Some(Vlan { ifindex: 1, tags: both }));
        assert_eq!(below(&links, 4), None, "three tags");
        assert_eq!(below(&links, 5), None, "what is below is not there");
    }

    #[test]
    fn a_vlan_device_whose_parent_is_elsewhere_leads_nowhere() {
        let (index, elsewhere) = link(2, Some((1, 0x8100, 7)));
        let links = BTreeMap::from([(index, Link { vlan: None, ..elsewhere })]);
        assert_eq!(below(&links, 2), None);
    }

    #[test]
    fn without_vlan_devices_the_table_is_empty() {
        let links = BTreeMap::from([link(1, None), link(2, None), link(3, None)]);
        assert!(table(&links, &[1, 2].into()).is_empty());
        let links =
            BTreeMap::from([link(1, None), link(2, None), link(3, None), link(4, Some((3, 0x8100, 7)))]);
        assert!(table(&links, &[1, 2].into()).is_empty(), "on an interface that nothing leaves by");
        let seven = Vlan { ifindex: 3, tags: tags(&[(0x8100, 7)]) };
        let own = |ifindex| (ifindex, Vlan { ifindex, tags: 0 });
        assert_eq!(table(&links, &[1, 3].into()), [own(1), own(3), (4, seven)].into());
    }
}
