//! Previews of rollouts, kept: each is a service of its own in the kernel ([`compile::preview`]), for as long as its rollout is under
//! way. The journal has it in the rollout's plan; so the next agent knows which of the kernel's services are previews.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use lb_common::abi::VipKey;
use lb_common::wire::{IPPROTO_TCP, IPPROTO_UDP};
use tracing::warn;

use super::Agent;
use crate::api::PreviewStatus;
use crate::compile::{self, PoolView, key_of};
use crate::config::{Protocol, Service, ServiceName};
use crate::events::Occurrence;
use crate::state::{Desired, Intent};

/// Previews that are in the kernel, by service.
pub(super) type Previews = BTreeMap<ServiceName, Preview>;

/// A preview that is in the kernel.
pub(super) struct Preview {
    at: SocketAddr,
    key: VipKey,
    /// The pool that it reaches.
    pool: PoolView,
}

impl Preview {
    /// Whether it is the one of this address, port and protocol.
    pub fn is_at(&self, at: SocketAddr, protocol: Protocol) -> bool {
        let protocol = match protocol {
            Protocol::Tcp => IPPROTO_TCP,
            Protocol::Udp => IPPROTO_UDP,
        };
        self.key == VipKey::new(at.ip(), at.port(), protocol)
    }
}

/// Every preview that there should be, as services.
pub(super) fn wanted(desired: &Desired) -> Vec<(Service, Intent)> {
    desired.services().filter_map(|service| preview_of(desired, &service)).collect()
}

/// The preview of a service, unless a configured one has its place by now.
fn preview_of(desired: &Desired, service: &Service) -> Option<(Service, Intent)> {
    let (preview, intent) = compile::preview(service, desired.intents.get(&service.name)?)?;
    holder(desired, &preview).is_none().then_some((preview, intent))
}

/// The configured service that has the place of a preview.
fn holder<'a>(desired: &'a Desired, preview: &Service) -> Option<&'a Service> {
    desired.config.services.iter().find(|other| {
        other.vip == preview.vip
            && other.protocol == preview.protocol
            && (other.port == 0 || other.port == preview.port)
    })
}

impl Agent {
    /// Addresses that the host answers for because of previews.
    pub(super) fn preview_addresses(&self) -> BTreeSet<IpAddr> {
        wanted(&self.desired).into_iter().map(|(preview, _)| preview.vip).collect()
    }

    /// Where the previews are that there should be.
    pub(super) fn preview_keys(&self) -> Vec<VipKey> {
        wanted(&self.desired).iter().map(|(preview, _)| key_of(preview)).collect()
    }

    /// Brings the preview of a service to what it should be: there, or not.
    pub(super) fn follow_preview(&mut self, name: &ServiceName) {
        let wanted = self
            .desired
            .effective(name.as_str())
            .map(Cow::into_owned)
            .and_then(|service| preview_of(&self.desired, &service));
        let key = wanted.as_ref().map(|(preview, _)| key_of(preview));
        if let Some(known) = self.previews.get(name)
            && Some(known.key) != key
        {
            self.end_preview(name);
        }
        let Some((preview, intent)) = wanted else { return };
        let mut compiler = std::mem::take(&mut self.compiler);
        let mut compiled = compiler.compile(&preview, &intent, &self.seed, &self.world());
        self.compiler = compiler;
        if let Err(error) = self.publisher.publish(&compiled.plan, &self.seed, crate::clock::ticks()) {
            warn!(service = %name, "its preview is not published: {error}");
            self.log.tally(|tally| tally.refused += 1);
            return;
        }
        let (at, key) = (SocketAddr::new(preview.vip, preview.port), compiled.plan.key);
        let pool = compiled.pools.swap_remove(0);
        let reaches = pool.name.clone();
        if self.previews.insert(name.clone(), Preview { at, key, pool }).is_none() {
            self.place_vips();
            self.tell_preview(name, "preview_open", format!("{at} reaches {reaches}, and nobody else"));
        }
    }

    fn end_preview(&mut self, name: &ServiceName) {
        let Some(Preview { at, key, pool }) = self.previews.remove(name) else { return };
        if let Err(error) = self.publisher.remove(&key) {
            warn!(service = %name, "its preview cannot be taken away: {error}");
            self.log.tally(|tally| tally.refused += 1);
        }
        self.place_vips();
        self.tell_preview(name, "preview_closed", format!("{at} does not reach {} any more", pool.name));
    }

    /// Takes away previews that there should not be any more. First of all: somebody else may be about to have their places.
    pub(super) fn end_previews(&mut self) {
        let keys = self.preview_keys();
        let over: Vec<ServiceName> = self
            .previews
            .iter()
            .filter(|(_, known)| !keys.contains(&known.key))
            .map(|(name, _)| name.clone())
            .collect();
        for name in over {
            self.end_preview(&name);
        }
    }

    /// Takes away previews of an earlier agent whose places configured services have now: they must not take over its tables.
    pub(super) fn end_adopted_previews(&mut self) {
        for service in self.desired.services() {
            let Some((preview, _)) = self
                .desired
                .intents
                .get(&service.name)
                .and_then(|intent| compile::preview(&service, intent))
                .filter(|(preview, _)| holder(&self.desired, preview).is_some())
            else {
                continue;
            };
            let key = key_of(&preview);
            let Some(index) = self.publisher.registry.service_index(&key) else { continue };
            let theirs: Vec<IpAddr> = preview
                .pools
                .iter()
                .flat_map(|pool| pool.backends.iter().map(|backend| backend.address.ip()))
                .collect();
            let address = |id: u16| IpAddr::from(self.publisher.maps.backends.read(id.into()).address);
            let is_preview =
                self.publisher.registry.backends_of(index).all(|id| theirs.contains(&address(id)));
            if is_preview && let Err(error) = self.publisher.remove(&key) {
                warn!(service = %service.name, "its preview cannot be taken away: {error}");
            }
        }
    }

    fn tell_preview(&self, name: &ServiceName, code: &'static str, message: String) {
        self.log.push(Occurrence {
            code,
            service: Some(name.as_str().to_owned()),
            message,
            ..Occurrence::default()
        });
    }

    /// The service whose preview is at a key.
    pub(super) fn previewed(&self, key: &VipKey) -> Option<&ServiceName> {
        self.previews.iter().find_map(|(name, known)| (known.key == *key).then_some(name))
    }

    /// How it stands with the preview of a rollout that is under way and has one.
    pub(super) fn preview_status(&self, name: &ServiceName) -> Option<PreviewStatus> {
        let service = self.desired.effective(name.as_str())?;
        let (preview, _) = compile::preview(&service, self.desired.intents.get(name)?)?;
        let at = SocketAddr::new(preview.vip, preview.port);
        let known = self.previews.get(name).filter(|known| known.at == at);
        let why_not = match (holder(&self.desired, &preview), known) {
            (Some(holder), _) => Some(format!("{} has its place", holder.name)),
            (None, None) => Some("it is not in the kernel".to_owned()),
            (None, Some(known)) if !known.pool.takes_new() => {
                let why = known.pool.backends.iter().find_map(|backend| backend.why_not);
                Some(why.map_or_else(|| "its pool has no backend".to_owned(), |why| why.words().to_owned()))
            }
            (None, Some(_)) => None,
        };
        Some(PreviewStatus { address: at.to_string(), open: why_not.is_none(), why_not })
    }
}
