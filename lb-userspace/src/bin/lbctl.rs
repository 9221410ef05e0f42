//! `lbctl`, the command line.

use std::process::ExitCode;

use lb_userspace::api::{Detached, KeepOrReset, RolledBack};
use lb_userspace::cli::{self, Offline, Places};
use lb_userspace::offline;
use lb_userspace::publish::split::Flows;

fn main() -> ExitCode {
    cli::main(&PinnedMaps)
}

/// What the agent left in the kernel.
struct PinnedMaps;

impl Offline for PinnedMaps {
    fn rollback(
        &self,
        places: &Places,
        service: &str,
        flows: KeepOrReset,
        reason: Option<String>,
    ) -> anyhow::Result<RolledBack> {
        let flows = match flows {
            KeepOrReset::Keep => Flows::Keep,
            KeepOrReset::Reset => Flows::Reset,
        };
        offline::rollback(&places.pin_dir, &places.state_dir, service, flows, reason)
    }

    fn detach(&self, places: &Places) -> anyhow::Result<Detached> {
        let removed = offline::detach(&places.pin_dir, &places.state_dir)?;
        Ok(Detached { removed, ..Detached::default() })
    }
}
