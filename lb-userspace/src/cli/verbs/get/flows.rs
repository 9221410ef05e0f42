//! `lbctl get flows`

use std::net::SocketAddr;

use clap::Args;

use super::Which;
use crate::api::{self, FlowQuery};
use crate::cli::human::age;
use crate::cli::table::{Table, cells, column};
use crate::cli::verbs::{Outcome, whole};
use crate::cli::{Context, watch};

#[derive(Debug, Args)]
pub(in crate::cli) struct Flows {
    #[command(flatten)]
    pub which: Which,
    /// At most so many.
    #[arg(long, value_name = "N", default_value_t = FlowQuery::LIMIT, value_parser = whole::<usize>)]
    limit: usize,
}

impl Flows {
    pub async fn run(self, context: &mut Context<'_>) -> Outcome {
        let query = FlowQuery { service: self.which.service.clone(), limit: self.limit };
        let (client, screen) = (&context.client, &mut context.screen);
        let fetch = async || client.flows(&query).await;
        watch::show(screen, self.which.watch, "no flows are tracked", fetch, table).await
    }
}

fn table(answer: &api::Flows) -> Table {
    let mut table = Table::new([
        column("SERVICE"),
        column("CLIENT"),
        column("KIND"),
        column("POOL"),
        column("BACKEND"),
        column("IDLE").right(),
        column("AGE").right().wide(),
    ]);
    for flow in &answer.flows {
        let client = SocketAddr::new(flow.client, flow.port);
        table.row(
            format!("{}/{client}/{}", flow.service, flow.kind),
            cells![
                &flow.service,
                client,
                flow.kind,
                &flow.pool,
                &flow.backend,
                age(flow.idle_seconds),
                flow.age_seconds.map_or("-".to_owned(), age),
            ],
        );
    }
    if answer.truncated {
        table.row("…", cells!["…", "", "", "", "", "", ""]);
    }
    table
}
