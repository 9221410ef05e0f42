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

/// In a few words: `allow 2, deny 1, 1000 new/s, 50 new/s a source`.
fn protection(of: &api::ProtectionStatus) -> String {
    let networks = |what: &str, count: u32| (count > 0).then(|| format!("{what} {count}"));
    let rate = |what: &str, rate: Option<u32>| rate.map(|rate| format!("{rate} {what}"));
    let words: Vec<String> = [
        networks("allow", of.allowed_networks),
        networks("deny", of.denied_networks),
        rate("new/s", of.max_new_per_second),
        rate("packets/s", of.max_packets_per_second),
        rate("new/s a source", of.source_max_new_per_second),
        rate("packets/s a source", of.source_max_packets_per_second),
    ]
    .into_iter()
    .flatten()
    .collect();
    if words.is_empty() { "nothing".to_owned() } else { words.join(", ") }
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
        column("PROTECTION").wide(),
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
                service.protection.as_ref().map_or_else(|| Tone::Faint.cell("-"), |it| protection(it).into()),
            ],
        );
    }
    table
}
