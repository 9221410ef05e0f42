//! What `lbctl` does itself when there is no agent: roll back, and take everything off.

use std::path::Path;
use std::time::Instant;

use anyhow::Context;
use lb_common::abi::{Backend, Service};

use crate::api::{KeepOrReset, RolledBack};
use crate::clock;
use crate::compile::key_of;
use crate::config::ServiceName;
use crate::dataplane::bpf::{Hash, Mapped};
use crate::dataplane::{self, maps};
use crate::netlink;
use crate::publish::split::{self, Flows};
use crate::state::{Author, Change, Desired, Journal};

/// Rolls back through the pinned maps. The agent that comes next finds it done, and written down where that was possible.
///
/// # Errors
///
/// If there is no such service, or no data path.
pub fn rollback(pin_dir: &Path, state_dir: &Path, service: &str, flows: Flows) -> anyhow::Result<RolledBack> {
    let start = Instant::now();
    let journal = Journal::open(state_dir).context("without an agent, its journal tells services by name");
    let (mut journal, entries) = journal?;
    let mut desired: Option<Desired> = None;
    for entry in &entries {
        match (&mut desired, &entry.change) {
            (Some(desired), change) => desired.replay(change),
            (none, Change::Config { config, .. }) => *none = Some(Desired::of((**config).clone())),
            (None, Change::Service { .. }) => {}
        }
    }
    let mut desired =
        desired.with_context(|| format!("the journal in {} names no services", state_dir.display()))?;
    let found = desired.service(service).map(|found| (found.name.clone(), key_of(found)));
    let (name, key): (ServiceName, _) = found.with_context(|| {
        let known: Vec<&str> = desired.config.services.iter().map(|service| service.name.as_str()).collect();
        format!("there is no service {service}; there are {}", known.join(", "))
    })?;

    let directory = maps::directory(pin_dir);
    let at = |map: &str| directory.join(map);
    let no_maps = || {
        format!(
            "there is no data path pinned in {} (another place: --pin-dir or LB_PIN_DIR)",
            directory.display()
        )
    };
    let vips: Hash<_, u32> = Hash::open(&at("VIPS")).with_context(no_maps)?;
    let index = vips.get(&key)?.with_context(|| format!("service {service} is not in the kernel"))?;
    let services: Mapped<Service> = Mapped::open(&at("SERVICES")).with_context(no_maps)?;
    let backends: Mapped<Backend> = Mapped::open(&at("BACKENDS")).with_context(no_maps)?;
    let done = split::roll_back(&services, &backends, index, flows);
    let total = start.elapsed();

    // The store counts; a full disk does not stop it.
    if let Some(intent) = desired.intents.get_mut(&name) {
        intent.split = 0.0;
        let summary = format!(
            "rollback of {service}: {} % -> 0 %, without the agent",
            split::percent(done.before.new())
        );
        let change = Change::Service { name: name.clone(), intent: intent.clone() };
        let author = Author { name: format!("uid {}", user()), pid: Some(std::process::id() as i32) };
        if let Err(error) = journal.append(clock::timestamp(), author, None, summary, change) {
            eprintln!("warning: the rollback is in force, but not in the journal: {error}");
        }
    }
    Ok(RolledBack {
        service: service.to_owned(),
        flows: match flows {
            Flows::Keep => KeepOrReset::Keep,
            Flows::Reset => KeepOrReset::Reset,
        },
        split_before_percent: split::percent(done.before.new()),
        store_nanoseconds: done.store.as_nanos() as u64,
        total_microseconds: total.as_micros() as u64,
        revision: desired.revisions.get(&name).copied().unwrap_or_default() + 1,
        ..RolledBack::default()
    })
}

fn user() -> u32 {
    // SAFETY: no arguments, cannot fail.
    unsafe { libc::getuid() }
}

/// Takes programs, maps and addresses off this host. Returns what was removed, in words.
///
/// # Errors
///
/// Names what could not be removed; calling it again goes on from there.
pub fn detach(pin_dir: &Path) -> anyhow::Result<Vec<String>> {
    let pins = dataplane::detach(pin_dir)?;
    let mut removed: Vec<String> = pins.iter().map(|pin| pin.display().to_string()).collect();
    for (count, what) in
        [(netlink::remove_vips()?, "VIP addresses"), (netlink::release_neighbours()?, "managed neighbours")]
    {
        if count > 0 {
            removed.push(format!("{count} {what}"));
        }
    }
    Ok(removed)
}
