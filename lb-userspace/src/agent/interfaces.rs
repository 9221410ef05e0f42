//! The configured interfaces, as they come and go.
//!
//! The program belongs on whatever interface has a configured name. One that is deleted takes its link with it; one that comes
//! back gets the program anew. One that is renamed keeps it (packets go on) until another interface has the name.

use std::collections::{BTreeMap, BTreeSet};

use super::Agent;
use crate::dataplane::{self, Attached};
use crate::events::Occurrence;
use crate::netlink::Link;

/// What is wrong with configured interfaces, as it was last told.
#[derive(Debug, Default)]
pub(super) struct Troubles {
    /// By configured name: why the program is not there.
    missing: BTreeMap<String, String>,
    /// By index: the name that it has instead.
    renamed: BTreeMap<u32, String>,
    /// By index: down, or without a carrier.
    down: BTreeSet<u32>,
}

impl Troubles {
    /// Configured interfaces that the program is not on, and why.
    pub(super) fn missing(&self) -> &BTreeMap<String, String> {
        &self.missing
    }

    /// Whether an interface is down, or has no carrier.
    pub(super) fn is_down(&self, ifindex: u32) -> bool {
        self.down.contains(&ifindex)
    }
}

impl Agent {
    /// Interfaces came, went or changed.
    pub(super) fn links_changed(&mut self) {
        let before = self.kernel.attached.len();
        self.note_lost();
        if self.kernel.attached.len() != before {
            // Addresses that were on the one that is gone go to the next.
            self.place_vips();
        }
        self.attach_missing();
        self.note_state();
        self.register_devices();
        self.converge(self.names());
    }

    /// Names of configured interfaces that the program is not on.
    pub(crate) fn missing_interfaces(&self) -> Vec<String> {
        self.troubles.missing.keys().cloned().collect()
    }

    /// Puts the program on configured interfaces that it is not on, where they are there.
    pub(super) fn attach_missing(&mut self) {
        if self.troubles.missing.is_empty() && self.troubles.renamed.is_empty() {
            return;
        }
        let links = self.links.snapshot();
        let mut attached_anew = false;
        for name in self.configured_interfaces() {
            let Some(link) = links.values().find(|link| link.name == name) else { continue };
            if self.kernel.attached.iter().any(|attached| attached.ifindex == link.index) {
                continue;
            }
            match tokio::task::block_in_place(|| self.attach(link)) {
                Ok(attached) => {
                    let mode = attached.mode.name();
                    // It takes the place of the one that had its name.
                    self.kernel.attached.retain(|other| other.name != name);
                    self.kernel.attached.push(attached);
                    self.troubles.missing.remove(&name);
                    attached_anew = true;
                    let message = format!("{name} is there: the program is on it, in {mode} mode");
                    self.note_interface("interface_attached", false, message);
                }
                Err(error) => {
                    let why = error.to_string();
                    if self.troubles.missing.insert(name.clone(), why.clone()).as_ref() != Some(&why) {
                        self.note_interface(
                            "interface_refused",
                            true,
                            format!("the program is not on {name}: {why}"),
                        );
                    }
                }
            }
        }
        if attached_anew {
            self.in_configured_order();
            dataplane::forget_other_links(&self.places.pin_dir, &self.kernel.attached);
            let there: Vec<u32> = self.kernel.attached.iter().map(|attached| attached.ifindex).collect();
            self.troubles.renamed.retain(|ifindex, _| there.contains(ifindex));
            // Addresses and settings went with the interface.
            self.register_devices();
            self.place_vips();
        }
    }

    fn attach(&self, link: &Link) -> Result<Attached, dataplane::LoadError> {
        let mode = super::start::native(self.desired.config.dataplane.xdp_mode);
        dataplane::attach_again(&self.places.pin_dir, &link.name, mode)
    }

    /// Tells of interfaces that are gone, and of those that have another name.
    fn note_lost(&mut self) {
        let links = self.links.snapshot();
        for attached in std::mem::take(&mut self.kernel.attached) {
            match links.get(&attached.ifindex) {
                None => {
                    self.troubles.renamed.remove(&attached.ifindex);
                    self.troubles.down.remove(&attached.ifindex);
                    let why = "there is no such interface".to_owned();
                    self.troubles.missing.insert(attached.name.clone(), why);
                    let message =
                        format!("{} is gone: its packets are not balanced until it is back", attached.name);
                    self.note_interface("interface_lost", true, message);
                }
                Some(link) => {
                    self.note_name(&attached, link);
                    self.kernel.attached.push(attached);
                }
            }
        }
    }

    fn note_name(&mut self, attached: &Attached, link: &Link) {
        if link.name == attached.name {
            if self.troubles.renamed.remove(&attached.ifindex).is_some() {
                self.note_interface(
                    "interface_renamed",
                    false,
                    format!("{} has its name again", attached.name),
                );
            }
        } else if self.troubles.renamed.insert(attached.ifindex, link.name.clone()).as_ref()
            != Some(&link.name)
        {
            let message = format!(
                "{} is called {} now; the program stays on it until another interface is called {}",
                attached.name, link.name, attached.name
            );
            self.note_interface("interface_renamed", true, message);
        }
    }

    /// Tells of interfaces that went down or came up.
    pub(super) fn note_state(&mut self) {
        let links = self.links.snapshot();
        let seen: Vec<(u32, String, bool)> = self
            .kernel
            .attached
            .iter()
            .filter_map(|attached| {
                let link = links.get(&attached.ifindex)?;
                Some((attached.ifindex, attached.name.clone(), link.running))
            })
            .collect();
        for (ifindex, name, running) in seen {
            if running && self.troubles.down.remove(&ifindex) {
                self.note_interface("interface_up", false, format!("{name} is up again"));
            } else if !running && self.troubles.down.insert(ifindex) {
                self.note_interface("interface_down", true, format!("{name} is down, or has no carrier"));
            }
        }
    }

    pub(super) fn configured_interfaces(&self) -> Vec<String> {
        let interfaces = &self.desired.config.dataplane.interfaces;
        interfaces.iter().map(|name| name.as_str().to_owned()).collect()
    }

    /// The first interface is the one that has the VIPs.
    fn in_configured_order(&mut self) {
        let order = self.configured_interfaces();
        self.kernel.attached.sort_by_key(|attached| order.iter().position(|name| *name == attached.name));
    }

    fn note_interface(&self, code: &'static str, severe: bool, message: String) {
        self.log.push(Occurrence { code, severe, message, ..Occurrence::default() });
    }
}
