//! `lbd`, the agent.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use lb_userspace::agent::{self, Places};
use lb_userspace::{api, config, decap};
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info};
use tracing_subscriber::EnvFilter;

/// The agent of lb: loads the XDP data path, checks health, and owns the maps.
#[derive(Parser)]
#[command(
    name = "lbd",
    version,
    after_help = "SIGHUP has it read its configuration file again. Stopping lbd stops no traffic: `lbctl detach` takes the data path off."
)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// The configuration file.
    #[arg(long, env = "LB_CONFIG", default_value = "/etc/lb/lb.toml")]
    config: PathBuf,
    /// The admin socket.
    #[arg(long, env = "LB_SOCKET", default_value = "/run/lb/lbd.sock")]
    socket: PathBuf,
    /// Where the journal is kept.
    #[arg(long, env = "LB_STATE_DIR", default_value = "/var/lib/lb")]
    state_dir: PathBuf,
    /// Where programs, maps and links are pinned.
    #[arg(long, env = "LB_PIN_DIR", default_value = "/sys/fs/bpf/lb")]
    pin_dir: PathBuf,
    /// Where metrics are served.
    #[arg(long, env = "LB_METRICS", default_value = "127.0.0.1:9650")]
    metrics: SocketAddr,
    /// Log every packet's verdict in the kernel program (slow: for debugging only). Without it the program has no log
    /// statements at all.
    #[arg(long)]
    log_packets: bool,
    /// Start although the journal is corrupt: keep the corrupt file beside it, go on with the good records before the bad one,
    /// and say what is lost.
    #[arg(long)]
    recover: bool,
}

#[derive(Subcommand)]
enum Command {
    /// On a backend of `dsr-ipip` without a tunnel device: takes the outer header off, until it is stopped.
    Decap(decap::Arguments),
}

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_from_env("LB_LOG").unwrap_or_else(|_| EnvFilter::new("info")))
        .with_writer(std::io::stderr)
        .init();
    let arguments = Arguments::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            error!("cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(async {
        match arguments.command {
            Some(Command::Decap(arguments)) => decap::run(&arguments).await,
            // As a task, so that a long step of the agent can make way for others.
            None => tokio::spawn(run(arguments)).await.context("the agent has ended")?,
        }
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let path = &arguments.config;
    let text = std::fs::read_to_string(path).with_context(|| {
        format!("cannot read the configuration {} (another place: --config or LB_CONFIG)", path.display())
    })?;
    let loaded = match config::parse(&text, &path.display().to_string()) {
        Ok(loaded) => loaded,
        Err(diagnostics) => anyhow::bail!("the configuration has mistakes\n{diagnostics}"),
    };
    let places = Places {
        config: arguments.config,
        socket: arguments.socket.clone(),
        state_dir: arguments.state_dir,
        pin_dir: arguments.pin_dir,
        metrics: arguments.metrics,
    };
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let log_level = if arguments.log_packets { 5 } else { 0 };
    let handle = agent::start(places, loaded.config, &text, log_level, arguments.recover).await?;
    let stop = std::sync::Arc::clone(&handle.stop);
    let reloader = handle.clone();
    let reload = async {
        while hangup.recv().await.is_some() {
            reloader.reload().await?;
        }
        anyhow::Ok(())
    };
    tokio::select! {
        served = api::serve(&arguments.socket, handle) => served?,
        reloaded = reload => reloaded?,
        () = stop.notified() => info!("the data path was taken off"),
        _ = terminate.recv() => info!("stopped; the data path goes on"),
        _ = interrupt.recv() => info!("stopped; the data path goes on"),
    }
    // The next agent finds no stale socket.
    let _ = std::fs::remove_file(&arguments.socket);
    Ok(())
}
