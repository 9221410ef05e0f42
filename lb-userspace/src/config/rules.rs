//! What must hold between values. Each value is right by itself already.
//!
//! Rules look at drafts, in which values may be lost to mistakes: a rule about a lost value holds its peace, so that one
//! mistake is reported once.

mod capacity;
mod discovery;
mod fleet;
mod health;
mod passive;
mod protection;
mod quic;
mod rollout;
mod service;

use super::keys::{ConfigDraft, ServiceDraft};
use super::read::Findings;

/// Checks everything.
pub(super) fn check(config: &ConfigDraft, findings: &mut Findings) {
    if let Some((dataplane, _)) = config.dataplane.get() {
        capacity::interfaces(dataplane, findings);
    }
    let services = config.services.value.as_deref().unwrap_or_default();
    for service in services {
        check_service(service, findings);
    }
    fleet::check(services, findings);
    if let Some((dataplane, _)) = config.dataplane.get() {
        capacity::check(dataplane, services, findings);
        capacity::sources(dataplane, services, findings);
    }
}

/// Checks one service by itself.
pub(super) fn check_service(service: &ServiceDraft, findings: &mut Findings) {
    service::check(service, findings);
    health::check(service, findings);
    passive::check(service, findings);
    rollout::check(service, findings);
    discovery::check(service, findings);
    protection::check(service, findings);
    quic::check(service, findings);
}
