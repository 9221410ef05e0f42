//! `lbctl capture`

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::time::Duration;

use clap::Args;
use pcap_file::pcapng::PcapNgWriter;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use pcap_file::{DataLink, PcapError};

use super::Outcome;
use super::trace::Which;
use crate::api::{TracePoint, Traced};
use crate::cli::Context;
use crate::cli::failure::{Exit, Failure};
use crate::cli::human::{counted, either};

/// Writes packets as they come in and go out, each with what was decided as a comment (pcapng).
///
/// Packets that the program sends back out itself never reach tcpdump: here they are. The file has two interfaces for each
/// of the host's, `eth0 in` and `eth0 out`; Wireshark shows the comments, and `frame.comment` filters by them. Of longer
/// packets the first 1 984 bytes are kept.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lbctl capture --host 198.51.100.7 --for 1m -w /tmp/client.pcapng
  lbctl capture --port 443 -c 100 -w - | tcpdump -nr -")]
pub(in crate::cli) struct Capture {
    #[command(flatten)]
    which: Which,
    /// The file; `-` is standard output.
    #[arg(short = 'w', long = "write", value_name = "FILE")]
    pub file: String,
}

impl Capture {
    pub async fn run(self, context: &mut Context<'_>) -> Outcome {
        let Context { client, screen, .. } = context;
        let out: Box<dyn Write> = match self.file.as_str() {
            "-" => Box::new(std::io::stdout()),
            path => Box::new(File::create(path).map_err(|error| Failure::file("write", path, &error))?),
        };
        let failed = |error: PcapError| {
            let error = match error {
                PcapError::IoError(error) => error,
                other => std::io::Error::other(other),
            };
            Failure::file("write", &self.file, &error)
        };
        let mut file = Pcap::new(BufWriter::new(out)).map_err(failed)?;
        let mut stream = client.trace(&self.which.body(true)).await?;
        screen.remark("capturing: what arrives after now is written; Ctrl-C ends it")?;
        let (mut packets, mut lost) = (0, 0);
        while let Some(traced) = tokio::select! {
            next = stream.next() => next?,
            _ = tokio::signal::ctrl_c() => None,
        } {
            lost = lost.max(traced.lost);
            packets += u64::from(traced.point == TracePoint::Ends);
            file.write(&traced).map_err(failed)?;
            if self.which.count.is_some_and(|count| packets >= count) {
                break;
            }
        }
        file.finish().map_err(failed)?;
        let lost = if lost > 0 {
            format!("; {} came too fast, and {} not in it", counted(lost, "point"), either(lost, "is", "are"))
        } else {
            String::new()
        };
        screen.remark(&format!("{}{lost}", counted(packets, "packet")))?;
        Ok(Exit::Done)
    }
}

/// A file that is written.
struct Pcap<W: Write> {
    writer: PcapNgWriter<W>,
    /// By the name of an interface, and whether it is the way out.
    interfaces: HashMap<(String, bool), u32>,
}

impl<W: Write> Pcap<W> {
    fn new(out: W) -> Result<Self, PcapError> {
        Ok(Self { writer: PcapNgWriter::new(out)?, interfaces: HashMap::new() })
    }

    fn write(&mut self, traced: &Traced) -> Result<(), PcapError> {
        if traced.point == TracePoint::GoesOn {
            return Ok(());
        }
        let out = traced.point == TracePoint::Ends;
        let name = traced.interface.clone().unwrap_or_else(|| "none".to_owned());
        let interface_id = self.interface(name, out)?;
        let text = traced.bytes.as_deref().unwrap_or_default();
        let data: Vec<u8> = text.as_bytes().chunks(2).filter_map(byte).collect();
        let block = EnhancedPacketBlock {
            interface_id,
            timestamp: since_1970(&traced.time),
            original_len: traced.length,
            data: Cow::Owned(data),
            options: vec![EnhancedPacketOption::Comment(Cow::Owned(comment(traced)))],
        };
        self.writer.write_pcapng_block(block).map(drop)
    }

    fn interface(&mut self, name: String, out: bool) -> Result<u32, PcapError> {
        let next = self.interfaces.len() as u32;
        if let Some(&known) = self.interfaces.get(&(name.clone(), out)) {
            return Ok(known);
        }
        let shown = format!("{name} {}", if out { "out" } else { "in" });
        let block = InterfaceDescriptionBlock {
            linktype: DataLink::ETHERNET,
            snaplen: 0,
            options: vec![
                InterfaceDescriptionOption::IfName(Cow::Owned(shown)),
                // Nanoseconds.
                InterfaceDescriptionOption::IfTsResol(9),
            ],
        };
        self.writer.write_pcapng_block(block)?;
        self.interfaces.insert((name, out), next);
        Ok(next)
    }

    fn finish(self) -> Result<(), PcapError> {
        self.writer.into_inner().flush().map_err(PcapError::IoError)
    }
}

fn comment(traced: &Traced) -> String {
    let packet = format!("cpu {} packet {}", traced.cpu, traced.packet);
    match traced.point {
        TracePoint::Ends => {
            let word = |text: &Option<String>| text.clone().unwrap_or_default();
            let new = if traced.begins { " (new flow)" } else { "" };
            let whom =
                traced.backend.as_deref().map_or_else(String::new, |backend| format!(" {backend}{new}"));
            format!(
                "{packet}: {} {}{whom}: {}",
                word(&traced.action),
                word(&traced.reason),
                word(&traced.meaning)
            )
        }
        TracePoint::Arrives | TracePoint::GoesOn => format!("{packet}: {}", traced.point),
    }
}

fn byte(digits: &[u8]) -> Option<u8> {
    u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

fn since_1970(time: &str) -> Duration {
    let time: jiff::Timestamp = time.parse().unwrap_or_default();
    Duration::from_nanos(u64::try_from(time.as_nanosecond()).unwrap_or_default())
}
