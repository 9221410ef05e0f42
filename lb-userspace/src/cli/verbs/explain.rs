//! `lbctl explain`

use std::net::{IpAddr, SocketAddr};

use clap::Args;

use super::Outcome;
use super::set::one_of;
use crate::api;
use crate::cli::Context;
use crate::cli::failure::Exit;
use crate::cli::screen::Format;
use crate::cli::table::{Table, cells, column};
use crate::config::Protocol;

/// Says where a flow goes and why, step by step.
#[derive(Debug, Args)]
pub(in crate::cli) struct Explain {
    /// The client's address and port; of an address alone the port is 40000.
    #[arg(long, value_name = "IP[:PORT]", value_parser = client)]
    pub from: SocketAddr,
    /// The VIP and the service's port.
    #[arg(long, value_name = "VIP:PORT", value_parser = end)]
    pub to: SocketAddr,
    /// The protocol.
    #[arg(long, value_name = "tcp|udp", default_value = "tcp", value_parser = one_of(Protocol::ALL, Protocol::as_str))]
    protocol: Protocol,
    /// The connection id that a datagram of QUIC has, where the service reads them.
    #[arg(long, value_name = "HEX")]
    quic_id: Option<api::ConnectionId>,
}

/// Where only the address of a client matters, as with `source-ip`, any port will do.
const ANY_PORT: u16 = 40_000;

fn client(text: &str) -> Result<SocketAddr, &'static str> {
    text.parse().map(|address: IpAddr| (address, ANY_PORT).into()).or_else(|_| end(text))
}

/// An end of a flow.
fn end(text: &str) -> Result<SocketAddr, &'static str> {
    text.parse()
        .map_err(|_| "expected an address and a port, such as 198.51.100.7:40000 or [2001:db8::7]:40000")
}

impl Explain {
    pub async fn run(self, context: &mut Context<'_>) -> Outcome {
        let Self { from, to, protocol, quic_id } = self;
        // QUIC is spoken over UDP, whatever else was said.
        let protocol = if quic_id.is_some() { Protocol::Udp } else { protocol };
        let answer = context.client.explain(&api::Explain { from, to, protocol, quic_id }).await?;
        let screen = &mut context.screen;
        if screen.format == Format::Json {
            screen.json(&answer)?;
            return Ok(Exit::Done);
        }
        let mut table = Table::new([column("STEP"), column("VALUES").wide(), column("DECISION").text()]);
        for step in &answer.steps {
            let values: Vec<String> =
                step.values.iter().map(|(name, value)| format!("{name}={value}")).collect();
            table.row("", cells![&step.title, values.join("\n"), &step.text]);
        }
        screen.say(&format!("{from} -> {to} {protocol}\n"))?;
        screen.table(&table, "")?;
        let place: Vec<&str> = [&answer.service, &answer.pool, &answer.backend]
            .into_iter()
            .flatten()
            .map(String::as_str)
            .collect();
        screen.say(&match place[..] {
            [] => format!("=> {} ({})\n", answer.verdict, answer.reason),
            _ => format!("=> {} ({}): {}\n", answer.verdict, answer.reason, place.join("/")),
        })?;
        Ok(Exit::Done)
    }
}
