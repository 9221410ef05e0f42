//! `lbctl sysdump`

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use clap::Args;

use super::Outcome;
use crate::cli::Context;
use crate::cli::failure::{Exit, Failure};
use crate::cli::human::{bytes, counted};
use crate::cli::screen::Format;
use crate::doctor;
use crate::sysdump::{self, archive, collect};

/// Collects what a bug report needs into one archive, without secrets.
#[derive(Debug, Args)]
#[command(after_help = "\
In it: doctor's report, configuration, journal, the agent's status, events, history and flows, metrics, logs, and what the kernel \
says of interfaces, routes and neighbours. Seeds, tokens, passwords and credentials in URLs are taken out; addresses stay.")]
pub(in crate::cli) struct Sysdump {
    /// The archive. Without it, `lb-sysdump-TIME.tar.gz` in the working directory.
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// The configuration: the same as --config.
    #[arg(short = 'c', id = "configuration", value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Sysdump {
    pub async fn run(self, context: &mut Context<'_>) -> Outcome {
        let root = format!("lb-sysdump-{}", jiff::Zoned::now().strftime("%Y%m%d-%H%M%S"));
        let path = self.file.unwrap_or_else(|| format!("{root}.tar.gz").into());
        let shown = path.display().to_string();
        let failed = |error: &std::io::Error| Failure::file("write", &shown, error);
        let mut options = OpenOptions::new();
        // Not over another one, and for nobody else to read.
        let mut file =
            options.write(true).create_new(true).mode(0o600).open(&path).map_err(|error| failed(&error))?;
        let places = sysdump::Places {
            doctor: doctor::Places {
                config: self.config.unwrap_or_else(|| context.places.config.clone()),
                socket: context.places.socket.clone(),
                pins: context.places.pin_dir.clone(),
            },
            state: context.places.state_dir.clone(),
            metrics: context.places.metrics.clone(),
        };
        let parts = collect(&places).await;
        archive(&mut file, &root, &parts).map_err(|error| failed(&error))?;
        let size = file.metadata().map_or(0, |metadata| metadata.len());
        let screen = &mut context.screen;
        if screen.format == Format::Json {
            let names: Vec<&str> = parts.iter().map(|part| part.name.as_str()).collect();
            screen.json(&serde_json::json!({ "api": "v1", "file": shown, "bytes": size, "parts": names }))?;
            return Ok(Exit::Done);
        }
        screen.say(&format!("{shown}: {}, {}\n", counted(parts.len() as u64, "file"), bytes(size)))?;
        screen.remark("secrets that have a name were taken out; look through it before you pass it on: it has addresses and names")?;
        Ok(Exit::Done)
    }
}
