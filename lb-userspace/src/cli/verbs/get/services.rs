//! `lbctl get services`

use clap::Args;

use super::Which;
use crate::api;
use crate::cli::human::{bytes, count, percent, vip};
use crate::cli::table::{Table, Tone, cells, column};
use crate::cli::verbs::Outcome;
use crate::cli::verbs::status::ready;
use crate::cli::{Context, watch};

#[derive(Debug, Args)]
pub(in crate::cli) struct Services {
    #[command(flatten)]
    pub which: Which,
}

impl Services {
    pub async fn run(self, context: &mut Context<'_>) -> Outcome {
        let query = self.which.query();
        let (client, screen) = (&context.client, &mut context.screen);
        let fetch = async || client.services(&query).await;
        watch::show(screen, self.which.watch, "there are no services", fetch, table).await
    }
}

fn table(answer: &api::Services) -> Table {
    let mut table = Table::new([
        column("SERVICE"),
        column("VIP"),
        column("MODE").if_room(1),
        column("STABLE"),
        column("CANARY"),
        column("SPLIT").right(),
        column("READY").right(),
        column("STATE"),
        column("REVISION").right().wide(),
        column("OVERRIDES").right().wide(),
        column("CONNECTIONS").right().wide(),
        column("PACKETS").right().wide(),
        column("BYTES").right().wide(),
    ]);
    for service in &answer.services {
        let none = || Tone::Faint.cell("-");
        let (canary, split) = match &service.canary {
            Some(canary) => (canary.into(), percent(service.split.percent).into()),
            None => (none(), none()),
        };
        let state = match (service.pools.iter().any(|pool| pool.panic), service.split.settled) {
            (true, _) => Tone::Bad.cell("panic"),
            (false, true) => Tone::Good.cell("settled"),
            (false, false) => Tone::Plain.cell("settling"),
        };
        let traffic = || service.pools.iter().map(|pool| pool.traffic);
        table.row(
            &service.name,
            cells![
                &service.name,
                vip(service),
                service.mode,
                &service.stable,
                canary,
                split,
                ready(&service.pools),
                state,
                service.revision,
                service.overrides.len(),
                count(traffic().map(|traffic| traffic.connections).sum()),
                count(traffic().map(|traffic| traffic.packets).sum()),
                bytes(traffic().map(|traffic| traffic.bytes).sum()),
            ],
        );
    }
    table
}
