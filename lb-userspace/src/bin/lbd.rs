//! `lbd`, the agent.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::{CommandFactory, Parser, Subcommand};
use lb_userspace::agent::{self, Handle, Places};
use lb_userspace::api::Server;
use lb_userspace::config::Config;
use lb_userspace::lifecycle::{self, LogFormat, Manager};
use lb_userspace::metrics::{Listener, Where};
use lb_userspace::state::Journal;
use lb_userspace::{chain, config, decap, version};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{debug, error, info, warn};

/// It gives memory back that a large request has taken, where the C library's keeps what lies between; see [`give_back`].
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The agent of lb: loads the XDP data path, checks health, and owns the maps.
#[derive(Parser)]
#[command(
    name = "lbd",
    version = version::text(),
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
    /// A second socket that answers GET only, for dashboards; none without it.
    #[arg(long, env = "LB_READ_SOCKET", value_name = "PATH")]
    read_only_socket: Option<PathBuf>,
    /// Permission bits of the second socket, octal.
    #[arg(long, env = "LB_READ_SOCKET_MODE", value_name = "MODE", default_value = "0666", value_parser = octal)]
    read_only_socket_mode: u32,
    /// Where the journal is kept.
    #[arg(long, env = "LB_STATE_DIR", default_value = "/var/lib/lb")]
    state_dir: PathBuf,
    /// Where programs, maps and links are pinned.
    #[arg(long, env = "LB_PIN_DIR", default_value = "/sys/fs/bpf/lb")]
    pin_dir: PathBuf,
    /// Where /metrics, /healthz and /readyz are served; `off`: nowhere.
    #[arg(long, env = "LB_METRICS", default_value = "127.0.0.1:9650")]
    metrics: Where,
    /// How the log is written. (LB_LOG says what is logged.)
    #[arg(long, env = "LB_LOG_FORMAT", value_enum, default_value_t)]
    log_format: LogFormat,
    /// Log every packet's verdict in the kernel program (slow: for debugging only). Without it the program has no log
    /// statements at all.
    #[arg(long)]
    log_packets: bool,
    /// Start although the journal is corrupt: keep the corrupt file beside it, go on with the good records before the bad one,
    /// and say what is lost.
    #[arg(long)]
    recover: bool,
    /// Only say whether lbd could start here: configuration, privileges, kernel, places, interfaces. Changes nothing; exit code
    /// 1 if something is in the way.
    #[arg(long)]
    check: bool,
}

#[derive(Subcommand)]
enum Command {
    /// On a backend of `dsr-ipip` or `dsr-gue` without a tunnel device: takes the outer headers off, until it is stopped.
    Decap(decap::Arguments),
    /// Writes the manual page.
    #[command(hide = true)]
    Man,
}

fn octal(text: &str) -> Result<u32, String> {
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777);
    mode.ok_or_else(|| "expected permission bits in octal, such as 0666".to_owned())
}

/// Has free memory go back soon, and in small pages: an agent is small for days, and large for the moment in which a large
/// configuration is applied. (Not at once: within a request the same pages would go and come many times.)
fn give_back() {
    /// `mi_option_purge_delay` of mimalloc.h, which the crate does not name.
    const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;
    const MILLISECONDS: libc::c_long = 100;
    // SAFETY: neither call has to do with memory of ours: an option that exists, and a setting of the process, both before there
    // are threads.
    unsafe {
        libmimalloc_sys::mi_option_set(PURGE_DELAY, MILLISECONDS);
        // A kernel that knows no huge pages, and says so, needs nothing.
        libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0);
    }
}

/// Looks once a second for what is free: the allocator looks only when it is asked for something, and an agent at rest asks for little.
async fn keep_giving_back() {
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        // SAFETY: it takes only what is free, of this thread and of those that have ended.
        unsafe { libmimalloc_sys::mi_collect(true) };
    }
}

fn main() -> ExitCode {
    give_back();
    let arguments = Arguments::parse();
    if arguments.check {
        return check(&places(&arguments), arguments.metrics);
    }
    if matches!(arguments.command, Some(Command::Man)) {
        return man();
    }
    if let Err(error) = lifecycle::start_log(arguments.log_format) {
        eprintln!("lbd: {}", chain(&error));
        return ExitCode::FAILURE;
    }
    match lifecycle::raise_open_files() {
        Ok(files) => debug!(files, "raised the limit of open files"),
        Err(error) => warn!("cannot raise the limit of open files: {error}"),
    }
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
            Some(Command::Man) | None => tokio::spawn(run(arguments)).await.context("the agent has ended")?,
        }
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!("{}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn man() -> ExitCode {
    match clap_mangen::Man::new(Arguments::command()).render(&mut std::io::stdout()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lbd: the manual cannot be written: {error}");
            ExitCode::FAILURE
        }
    }
}

fn places(arguments: &Arguments) -> Places {
    Places {
        config: arguments.config.clone(),
        socket: arguments.socket.clone(),
        state_dir: arguments.state_dir.clone(),
        pin_dir: arguments.pin_dir.clone(),
    }
}

fn check(places: &Places, metrics: Where) -> ExitCode {
    let findings = lifecycle::check::check(places, metrics);
    for finding in &findings {
        println!("{finding}");
    }
    if findings.iter().all(|finding| finding.outcome.is_ok()) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let (config, text) = read(&arguments.config)?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    // Another agent has the address of metrics, too: it is named first.
    Journal::is_free(&arguments.state_dir)?;
    let metrics = match arguments.metrics {
        Where::Off => None,
        Where::At(address) => Some(Listener::bind(address).await?),
    };
    let manager = Manager::of_this_process();
    let log_level = if arguments.log_packets { 5 } else { 0 };
    let handle = agent::start(places(&arguments), config, &text, log_level, arguments.recover).await?;
    drop(text);
    tokio::spawn(keep_giving_back());

    let (stopping, stopped) = watch::channel(false);
    let mut servers = JoinSet::new();
    let mut sockets = Vec::new();
    if let Some(path) = &arguments.read_only_socket {
        sockets.push(Server::bind_read_only(path, arguments.read_only_socket_mode)?);
    }
    // The last one: whoever finds it finds the agent whole.
    sockets.push(Server::bind(&arguments.socket)?);
    for socket in sockets {
        let mut stopped = stopped.clone();
        servers.spawn(socket.serve(Arc::new(handle.clone()), async move {
            _ = stopped.wait_for(|stopped| *stopped).await;
        }));
    }
    if let Some(listener) = metrics {
        servers.spawn(listener.serve(handle.clone(), stopped));
    }
    manager.ready();
    let ended = tokio::select! {
        reloaded = reload(&mut hangup, &handle, &manager) => reloaded,
        () = manager.watch(&handle) => Err(anyhow::anyhow!("the agent has ended; its last words are above")),
        () = handle.stop.notified() => { info!("the data path was taken off"); Ok(()) }
        _ = terminate.recv() => { info!("stopped; the data path goes on"); Ok(()) }
        _ = interrupt.recv() => { info!("stopped; the data path goes on"); Ok(()) }
    };
    manager.stopping();
    // Fails only if every server has ended.
    _ = stopping.send(true);
    // Requests that are under way are answered, and the sockets taken away: the next agent finds no stale one.
    while servers.join_next().await.is_some() {}
    ended
}

/// The configuration, and its text.
fn read(path: &Path) -> anyhow::Result<(Config, String)> {
    let text = std::fs::read_to_string(path).with_context(|| {
        format!("cannot read the configuration {} (another place: --config or LB_CONFIG)", path.display())
    })?;
    match config::parse(&text, &path.display().to_string()) {
        Ok(loaded) => Ok((loaded.config, text)),
        Err(diagnostics) => anyhow::bail!("the configuration has mistakes\n{diagnostics}"),
    }
}

/// Reads the configuration again, as often as it is told to. Ends if the agent does.
async fn reload(
    hangup: &mut tokio::signal::unix::Signal,
    handle: &Handle,
    manager: &Manager,
) -> anyhow::Result<()> {
    while hangup.recv().await.is_some() {
        manager.reloading();
        let done = handle.reload().await;
        manager.ready();
        done?;
    }
    std::future::pending().await
}
