//! What `lbctl` does itself when there is no agent: roll back, and take everything off.

use std::io;
use std::path::Path;
use std::time::Instant;

use anyhow::Context;
use jiff::Timestamp;
use lb_common::abi::{Backend, LAYOUT, Service, VipKey};
use thiserror::Error;

use crate::api::{Actor, ApiError, KeepOrReset, RolledBack};
use crate::clock;
use crate::compile::key_of;
use crate::config::ServiceName;
use crate::dataplane::bpf::{Hash, Mapped};
use crate::dataplane::{self, Place, maps};
use crate::netlink;
use crate::publish::split::{self, Flows};
use crate::state::{Author, Change, Desired, Journal, JournalError};
use crate::sysctl;

/// There is no journal that would tell services by name.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct NoNames(pub String);

/// Rolls back through the pinned maps. The agent that comes next finds it done, and written down where that was possible.
///
/// # Errors
///
/// If there is no such service ([`ApiError`]), nothing that names services ([`NoNames`]), or no data path.
pub fn rollback(
    pin_dir: &Path,
    state_dir: &Path,
    service: &str,
    flows: Flows,
    reason: Option<String>,
) -> anyhow::Result<RolledBack> {
    let start = Instant::now();
    // A journal that is corrupt further on still tells services by name.
    let (entries, _) = Journal::survey(state_dir).map_err(|error| match error {
        // Not a matter of where it is.
        JournalError::Io { ref source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
            error.into()
        }
        error => anyhow::Error::new(NoNames(error.to_string())),
    })?;
    let desired = Desired::replayed(&entries)
        .ok_or_else(|| NoNames(format!("the journal in {} names no services", state_dir.display())))?;
    let found = desired.service(service).map(|found| (found.name.clone(), key_of(found)));
    let (name, key): (ServiceName, _) = found.ok_or_else(|| {
        let known = desired.config.services.iter().map(|service| service.name.as_str());
        ApiError::no_service(service, known)
    })?;

    let mut places = dataplane::live(pin_dir);
    if places.is_empty() {
        // Whatever is wrong with it, the message names it.
        places.push(Place { layout: LAYOUT, directory: maps::directory(pin_dir) });
    }
    let mut warnings = Vec::new();
    // Two, where an agent has died while it moved from one layout of the maps to another: each is met by some packets.
    let all = places.iter().map(|place| rollback_in(place, &key, service, flows, &mut warnings));
    let (done, failed): (Vec<_>, Vec<_>) = all.collect::<Vec<_>>().into_iter().partition(Result::is_ok);
    let done = done.into_iter().flatten().max_by_key(|done| done.before.new());
    let done = match (done, failed.into_iter().find_map(Result::err)) {
        (Some(done), None) => done,
        (Some(done), Some(error)) => {
            warnings.push(format!(
                "not where an agent has moved some of the packets to, or from: {}",
                crate::chain(&error)
            ));
            done
        }
        (None, error) => return Err(error.unwrap_or_else(|| anyhow::anyhow!("there is no data path"))),
    };
    let total = start.elapsed();

    // The store counts; a journal that cannot be written does not stop it.
    let before = split::percent(done.before.new());
    let summary = format!("rollback of {service}: {before} % -> 0 %, without the agent");
    let written = record(state_dir, &name, reason, summary, before == 0.0 && flows == Flows::Keep);
    let (revision, service_revision) = match written {
        Ok((revision, service_revision)) => (Some(revision), service_revision),
        Err(error) => {
            let warning = format!(
                "the rollback is in force, but not in the journal: {error}; the agent adopts it when it is back"
            );
            warnings.push(warning);
            (None, None)
        }
    };
    Ok(RolledBack {
        service: service.to_owned(),
        flows: match flows {
            Flows::Keep => KeepOrReset::Keep,
            Flows::Reset => KeepOrReset::Reset,
        },
        split_before_percent: before,
        store_seconds: done.store.as_secs_f64(),
        total_seconds: total.as_secs_f64(),
        revision,
        service_revision,
        warnings,
        ..RolledBack::default()
    })
}

/// Rolls back in the maps of one layout.
fn rollback_in(
    place: &Place,
    key: &VipKey,
    service: &str,
    flows: Flows,
    warnings: &mut Vec<String>,
) -> anyhow::Result<split::RolledBack> {
    let at = |map: &str| place.directory.join(map);
    let no_maps = || {
        format!(
            "there is no data path pinned in {} (another place: --pin-dir or LB_PIN_DIR)",
            place.directory.display()
        )
    };
    let vips: Hash<VipKey, u32> = Hash::open(&at("VIPS")).with_context(no_maps)?;
    let index = vips.get(key)?.with_context(|| format!("service {service} is not in the kernel"))?;
    if place.layout == LAYOUT {
        let services: Mapped<Service> = Mapped::open(&at("SERVICES")).with_context(no_maps)?;
        let backends: Mapped<Backend> = Mapped::open(&at("BACKENDS")).with_context(no_maps)?;
        return Ok(split::roll_back(&services, &backends, index, flows));
    }
    // Another version's: where the split is, is known.
    let start = Instant::now();
    let before = dataplane::roll_back(place, index).with_context(no_maps)?;
    if flows == Flows::Reset {
        warnings.push(format!(
            "the data path is another version's (layout {}): established flows of the canary finish where they are",
            place.layout
        ));
    }
    Ok(split::RolledBack { before, store: start.elapsed() })
}

/// Writes a rollback into the journal, unless an agent has it. One that has `changed_nothing` is written only if the journal
/// says otherwise. Returns the agent's revision and the service's.
fn record(
    state_dir: &Path,
    name: &ServiceName,
    reason: Option<String>,
    summary: String,
    changed_nothing: bool,
) -> Result<(u64, Option<u64>), JournalError> {
    let (mut journal, entries) = Journal::open(state_dir)?;
    let desired = Desired::replayed(&entries);
    let revision = |desired: &Option<Desired>| desired.as_ref()?.revisions.get(name).copied();
    let intent = desired.as_ref().and_then(|desired| desired.intents.get(name));
    let Some(mut intent) = intent.cloned() else { return Ok((journal.last(), None)) };
    if changed_nothing && intent.split == 0.0 && !intent.is_in_rollout() {
        return Ok((journal.last(), revision(&desired)));
    }
    // After a reboot the journal is all that knows of it.
    intent.roll_back(Timestamp::now());
    let change = Change::Service { name: name.clone(), intent };
    let pid = Some(std::process::id() as i32);
    // SAFETY: neither takes an argument or can fail.
    let actor = unsafe { Actor { uid: libc::geteuid(), gid: libc::getegid(), pid } };
    let author = Author { name: actor.name(), pid };
    let entry = journal.append(clock::timestamp(), author, reason, summary, change)?;
    Ok((entry.sequence, revision(&Desired::after(desired, &entry.change))))
}

/// Takes programs, maps and addresses off this host, and gives it back the settings that an agent has changed. Returns what was
/// removed, in words.
///
/// # Errors
///
/// Names what could not be removed; calling it again goes on from there.
pub fn detach(pin_dir: &Path, state_dir: &Path) -> anyhow::Result<Vec<String>> {
    let pins = dataplane::detach(pin_dir)?;
    let mut removed: Vec<String> = pins.iter().map(|pin| pin.display().to_string()).collect();
    let vips = netlink::remove_vips()?;
    let neighbours = netlink::release_neighbours()?;
    for (count, one, many) in
        [(vips, "VIP address", "VIP addresses"), (neighbours, "managed neighbour", "managed neighbours")]
    {
        if count > 0 {
            removed.push(format!("{count} {}", if count == 1 { one } else { many }));
        }
    }
    removed.extend(sysctl::restore(state_dir)?.into_iter().map(|name| format!("{name} = 1")));
    Ok(removed)
}
