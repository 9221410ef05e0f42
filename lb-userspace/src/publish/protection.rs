//! Who may talk to services, and how much.
//!
//! Rules are written one by one, in an order in which nobody is kept away in between who is not kept away before or after: who is
//! allowed by name comes first and goes last.

use std::collections::{BTreeMap, BTreeSet};
use std::mem::offset_of;

use ipnet::IpNet;
use lb_common::abi::{Address, GuestKey};
use lb_common::guard::{Guard, HOST, Rule};

use super::{PublishError, Publisher, map_error};

/// What the maps should hold of a service's protection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Protection {
    /// Networks whose clients may talk to it; none: everybody may.
    pub allow: Vec<IpNet>,
    /// Networks whose clients may not.
    pub deny: Vec<IpNet>,
    /// Its rates; what else it has is not looked at.
    pub rates: Guard,
}

/// Networks of one owner, and what each may.
pub(super) type Rules = BTreeMap<GuestKey, Rule>;

impl Protection {
    /// Whether there is anything that a packet has to be asked for.
    #[must_use]
    pub fn guards(&self) -> bool {
        !self.allow.is_empty() || !self.deny.is_empty() || self.rates.has_rates()
    }

    fn rules(&self, owner: u32) -> Rules {
        let mut rules = Rules::new();
        if !self.allow.is_empty() {
            rules.insert(GuestKey::network(owner, Address::default(), 0), Rule::NotAllowed);
        }
        rules.extend(self.allow.iter().map(|network| (network_key(owner, *network), Rule::Allowed)));
        rules.extend(self.deny.iter().map(|network| (network_key(owner, *network), Rule::Denied)));
        rules
    }
}

/// What is taken away first.
const fn strictness(rule: Rule) -> u8 {
    match rule {
        Rule::Allowed => 0,
        Rule::Denied => 1,
        Rule::NotAllowed => 2,
    }
}

/// The rule of the smallest network that has the first `bits` bits of an address.
fn longest(rules: &Rules, network: Address, bits: u32) -> Option<(GuestKey, Rule)> {
    let owner = rules.keys().next()?.service;
    let number = u128::from_be_bytes(network.v6_octets());
    (0..=bits).rev().find_map(|length| {
        let mask = u128::MAX.checked_shl(128 - length).unwrap_or(0);
        let key = GuestKey::network(owner, Address::v6(&(number & mask).to_be_bytes()), length);
        rules.get(&key).map(|rule| (key, *rule))
    })
}

/// What holds for the host behind a VIP: somebody may ask it who may talk to any of its services. Nothing, if everybody may.
fn for_host(owner: u32, services: &[&Rules]) -> Rules {
    if services.is_empty() || services.iter().any(|rules| rules.is_empty()) {
        return Rules::new();
    }
    // Between the networks that any service names, nothing changes.
    let named: BTreeSet<(Address, u32)> =
        services.iter().flat_map(|rules| rules.keys()).map(|key| (key.network, key.bits - 32)).collect();
    let mut host = Rules::new();
    for (network, bits) in named {
        let of = services.iter().map(|rules| longest(rules, network, bits).map(|(_, rule)| rule));
        // Nothing is said of it: it may. The mildest holds.
        let rule = of.map(|rule| rule.unwrap_or(Rule::Allowed)).min_by_key(|rule| strictness(*rule));
        host.insert(GuestKey::network(owner, network, bits), rule.unwrap_or(Rule::Allowed));
    }
    host
}

impl Publisher {
    /// Makes the maps hold a service's protection. Returns whether that changed anything.
    pub(super) fn protect(&mut self, index: u32, plan: &Protection) -> Result<bool, PublishError> {
        let rules = plan.rules(index);
        let guard = Guard { rules: (!rules.is_empty()).into(), ..plan.rates };
        let vip = self.registry.services.get(&index).map(|record| record.key.address);
        let mut changed = self.write_rules(index, rules)?;
        if let Some(vip) = vip.filter(|_| changed || !self.registry.hosted.contains(&index)) {
            // What cannot be finished now is begun anew next time.
            self.registry.hosted.remove(&index);
            self.protect_host(vip)?;
            self.registry.hosted.insert(index);
        }
        changed |= self.maps.guards.write_from(index, offset_of!(Guard, connections), &guard);
        Ok(changed)
    }

    /// The same of the host behind a VIP, once its services are as they should be.
    pub(super) fn protect_host(&mut self, vip: Address) -> Result<(), PublishError> {
        let mut theirs: Vec<u32> = self
            .registry
            .services
            .iter()
            .filter(|(_, record)| record.key.address == vip)
            .map(|(index, _)| *index)
            .collect();
        theirs.sort_unstable();
        let before = self.maps.vip_rules.get(&vip).map_err(map_error("VIP_RULES"))?;
        let none = Rules::new();
        let of = |index: &u32| self.registry.rules.get(index).unwrap_or(&none);
        let owner = theirs.first().map_or(HOST, |first| HOST | first);
        let wanted = for_host(owner, &theirs.iter().map(of).collect::<Vec<_>>());
        // Every VIP is listed: 0 says that nobody is denied.
        let after = (!theirs.is_empty()).then_some(if wanted.is_empty() { 0 } else { owner });
        if !wanted.is_empty() {
            self.write_rules(owner, wanted)?;
        }
        if after != before {
            match after {
                Some(owner) => self.maps.vip_rules.insert(&vip, &owner),
                None => self.maps.vip_rules.remove(&vip).map(drop),
            }
            .map_err(map_error("VIP_RULES"))?;
        }
        // Nobody asks for them any more.
        match before {
            Some(before) if before != 0 && after != Some(before) => {
                self.write_rules(before, Rules::new()).map(drop)
            }
            _ => Ok(()),
        }
    }

    /// Makes an owner's rules these.
    fn write_rules(&mut self, owner: u32, wanted: Rules) -> Result<bool, PublishError> {
        let known = self.registry.rules.entry(owner).or_default();
        if *known == wanted {
            return Ok(false);
        }
        let mut new: Vec<(GuestKey, Rule)> = wanted
            .iter()
            .filter(|(key, rule)| known.get(*key) != Some(*rule))
            .map(|(k, r)| (*k, *r))
            .collect();
        new.sort_by_key(|(_, rule)| strictness(*rule));
        let mut gone: Vec<(GuestKey, Rule)> =
            known.iter().filter(|(key, _)| !wanted.contains_key(*key)).map(|(k, r)| (*k, *r)).collect();
        gone.sort_by_key(|(_, rule)| std::cmp::Reverse(strictness(*rule)));
        // Each is noted as it is made: whatever comes of the next one, this one is known.
        for (key, rule) in new {
            self.maps.rules.insert(&key, &(rule as u32)).map_err(map_error("RULES"))?;
            known.insert(key, rule);
        }
        for (key, _) in gone {
            self.maps.rules.remove(&key).map_err(map_error("RULES"))?;
            known.remove(&key);
        }
        if known.is_empty() {
            self.registry.rules.remove(&owner);
        }
        Ok(true)
    }

    /// The rules of a service, for those who explain: the network that a client is in, and what it may.
    #[must_use]
    pub fn rule_of(&self, index: u32, client: Address) -> Option<(IpNet, Rule)> {
        let (key, rule) = longest(self.registry.rules.get(&index)?, client, 128)?;
        Some((network_of(&key), rule))
    }
}

/// The key of a network.
pub(super) fn network_key(owner: u32, network: IpNet) -> GuestKey {
    let bits = u32::from(network.prefix_len()) + if network.addr().is_ipv4() { 96 } else { 0 };
    GuestKey::network(owner, network.network().into(), bits)
}

/// The network of a key.
fn network_of(key: &GuestKey) -> IpNet {
    let bits = key.bits - 32;
    let prefix = if key.network.is_v4() { bits.saturating_sub(96) } else { bits };
    IpNet::new(key.network.into(), prefix as u8).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(owner: u32, allow: &[&str], deny: &[&str]) -> Rules {
        let nets = |list: &[&str]| list.iter().map(|text| text.parse().unwrap()).collect();
        Protection { allow: nets(allow), deny: nets(deny), rates: Guard::default() }.rules(owner)
    }

    fn ask(rules: &Rules, client: &str) -> Option<Rule> {
        let client: std::net::IpAddr = client.parse().unwrap();
        longest(rules, client.into(), 128).map(|(_, rule)| rule)
    }

    #[test]
    fn the_smallest_network_says_what_a_client_may() {
        let rules = of(7, &["10.0.0.0/8", "10.66.6.0/24"], &["10.66.0.0/16", "0.0.0.0/0"]);
        for (client, rule) in [
            ("10.1.2.3", Rule::Allowed),
            ("10.66.1.1", Rule::Denied),
            ("10.66.6.1", Rule::Allowed),
            ("192.0.2.1", Rule::Denied),
            ("2001:db8::1", Rule::NotAllowed),
        ] {
            assert_eq!(ask(&rules, client), Some(rule), "{client}");
        }
        let denies = of(7, &[], &["2001:db8::/32", "10.0.0.0/8"]);
        assert_eq!(ask(&denies, "2001:db8:1::1"), Some(Rule::Denied));
        assert_eq!(ask(&denies, "2001:db9::1"), None);
        assert!(rules.keys().all(|key| key.service == 7));
    }

    #[test]
    fn who_may_talk_to_a_service_of_a_vip_may_ask_its_host() {
        let one = of(1, &["10.0.0.0/8"], &["10.9.0.0/16"]);
        let other = of(2, &[], &["10.0.0.0/8", "192.0.2.0/24"]);
        let third = of(3, &["192.0.2.128/25", "10.9.9.0/24"], &[]);
        let hosts = [
            (for_host(HOST, &[&one]), vec![&one]),
            (for_host(HOST, &[&one, &other]), vec![&one, &other]),
            (for_host(HOST, &[&third, &other]), vec![&third, &other]),
            (for_host(HOST, &[&one, &other, &third]), vec![&one, &other, &third]),
        ];
        for client in [
            "10.1.1.1",
            "10.9.1.1",
            "10.9.9.9",
            "192.0.2.1",
            "192.0.2.200",
            "198.51.100.1",
            "11.0.0.0",
            "9.255.255.255",
        ] {
            for (host, services) in &hosts {
                let may = |rule: Option<Rule>| matches!(rule, None | Some(Rule::Allowed));
                let any = services.iter().any(|rules| may(ask(rules, client)));
                assert_eq!(may(ask(host, client)), any, "{client} of {services:?}");
            }
        }
        assert!(for_host(HOST, &[&one, &Rules::new()]).is_empty(), "one of them takes everybody");
    }

    #[test]
    fn a_network_is_shown_as_it_was_written() {
        for text in ["10.0.0.0/8", "0.0.0.0/0", "192.0.2.1/32", "2001:db8::/32", "::/0"] {
            let network: IpNet = text.parse().unwrap();
            assert_eq!(network_of(&network_key(1, network)).to_string(), text);
        }
    }
}
