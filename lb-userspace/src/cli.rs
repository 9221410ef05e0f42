//! `lbctl`: one verb, one call of the agent's API.
//!
//! [`verbs`] has a file for each; what they share is how things look ([`table`], [`human`], [`screen`]), how a backend is
//! named ([`target`]), how changes are followed ([`watch`]), and how it ends ([`failure`]).

mod changes;
mod examples;
mod failure;
mod human;
mod screen;
mod table;
mod target;
mod top;
mod usage;
mod verbs;
mod watch;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, FromArgMatches, Parser};

use crate::api::{Client, Detached, KeepOrReset, RolledBack};
pub use failure::Exit;
use failure::Failure;
pub use screen::{Format, Screen};
use verbs::Verb;

/// Controls lb: its splits, rollouts and backends.
#[derive(Debug, Parser)]
#[command(name = "lbctl", version = crate::version::text(), arg_required_else_help = true, after_help = AFTER_HELP, disable_help_subcommand = true)]
struct Cli {
    #[command(flatten)]
    places: Places,
    /// How answers are shown; JSON is stable and versioned.
    #[arg(short, long, global = true, help_heading = EVERYWHERE, value_enum, default_value_t, value_name = "FORMAT")]
    output: Format,
    #[command(subcommand)]
    verb: Verb,
}

/// What every verb takes stands apart from what is its own.
const EVERYWHERE: &str = "Options of every verb";

const VERB_HELP: &str = "\
{about-with-newline}
{usage-heading} {usage}{after-help}

{all-args}

What every verb takes, such as -o json and --socket, is in `lbctl --help`";

const AFTER_HELP: &str = "\
Exit codes: 0 done, 1 failed, 2 usage, 3 degraded or rolled back, 4 timed out, 5 conflict, 6 agent unreachable

Examples:
  lbctl apply -f /etc/lb/lb.toml --dry-run
  lbctl set split checkout 10
  lbctl rollback checkout";

/// Where the agent and what it left in the kernel are found.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = EVERYWHERE)]
pub struct Places {
    /// The agent's socket.
    #[arg(
        long,
        global = true,
        env = "LB_SOCKET",
        default_value = "/run/lb/lbd.sock",
        value_name = "PATH",
        hide_env_values = true
    )]
    pub socket: PathBuf,
    /// Where programs and maps are pinned; `v<LAYOUT>` is below it.
    #[arg(
        long,
        global = true,
        env = "LB_PIN_DIR",
        default_value = "/sys/fs/bpf/lb",
        value_name = "DIR",
        hide_env_values = true
    )]
    pub pin_dir: PathBuf,
    /// Where the agent keeps its journal.
    #[arg(
        long,
        global = true,
        env = "LB_STATE_DIR",
        default_value = "/var/lib/lb",
        value_name = "DIR",
        hide_env_values = true
    )]
    pub state_dir: PathBuf,
    /// The configuration: doctor and sysdump read it.
    #[arg(
        long,
        global = true,
        env = "LB_CONFIG",
        default_value = "/etc/lb/lb.toml",
        value_name = "FILE",
        hide_env_values = true
    )]
    pub config: PathBuf,
    /// Where the metrics are: sysdump reads them.
    #[arg(
        long,
        global = true,
        env = "LB_METRICS",
        default_value = "127.0.0.1:9650",
        value_name = "HOST:PORT",
        hide_env_values = true
    )]
    pub metrics: String,
}

/// What works without an agent, through the maps that it pinned.
pub trait Offline {
    /// Takes every new flow off a service's canary.
    ///
    /// # Errors
    /// If there is no such service or its maps cannot be used.
    fn rollback(
        &self,
        places: &Places,
        service: &str,
        flows: KeepOrReset,
        reason: Option<String>,
    ) -> anyhow::Result<RolledBack>;

    /// Takes programs, maps and addresses off the host.
    ///
    /// # Errors
    /// If something could not be taken off.
    fn detach(&self, places: &Places) -> anyhow::Result<Detached>;
}

/// The command line, with the examples of each verb.
fn command() -> clap::Command {
    examples::add(Cli::command())
}

/// The same for people who ask about a verb: examples come first, and what every verb takes is not said again.
fn brief() -> clap::Command {
    fn arrange(verb: clap::Command) -> clap::Command {
        verb.help_template(VERB_HELP).mut_subcommands(arrange)
    }
    let hidden = |arg: clap::Arg| match arg.get_help_heading() {
        Some(EVERYWHERE) => arg.hide_short_help(true).hide_long_help(true),
        _ => arg,
    };
    let mut built = command();
    // Built, each knows its usage. Said now, it has no options that are set by the environment.
    built.build();
    usages(command().mut_args(hidden).mut_subcommands(arrange), &mut built)
}

fn usages(command: clap::Command, built: &mut clap::Command) -> clap::Command {
    let usage = built.render_usage().to_string();
    let usage = usage.trim_start_matches("Usage: ").to_owned();
    command.override_usage(usage).mut_subcommands(|verb| match built.find_subcommand_mut(verb.get_name()) {
        Some(built) => usages(verb, built),
        None => verb,
    })
}

/// Whether a line (without its `lbctl`) is understood.
#[cfg(test)]
pub(crate) fn understands(line: &str) -> Result<(), clap::Error> {
    // As a shell would, where quotes are around whole words.
    let parts = line.split('\'').enumerate();
    let words = parts.flat_map(|(nth, part)| match nth % 2 {
        0 => part.split_whitespace().collect(),
        _ => vec![part],
    });
    let found = command().try_get_matches_from(std::iter::once("lbctl").chain(words));
    match found.and_then(|found| Cli::from_arg_matches(&found)) {
        Err(error) if error.use_stderr() => Err(error),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// What a verb works with.
struct Context<'a> {
    places: Places,
    client: Client,
    screen: Screen,
    offline: &'a dyn Offline,
}

/// The whole program, on the process's own arguments, output and errors.
pub fn main(offline: &dyn Offline) -> ExitCode {
    run(std::env::args_os(), Screen::of_process(), offline).into()
}

/// The whole program; the first argument is its name. Help and mistakes in the arguments themselves go to the process's
/// own output and errors.
pub fn run(arguments: impl IntoIterator<Item = OsString>, mut screen: Screen, offline: &dyn Offline) -> Exit {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let parse = |command: clap::Command| {
        command.try_get_matches_from(&arguments).and_then(|found| Cli::from_arg_matches(&found))
    };
    let Cli { places, output, verb } = match parse(command()) {
        Ok(cli) => cli,
        Err(error) => {
            let root = command();
            let is_verb = |word: &OsString| root.get_subcommands().any(|verb| *word == *verb.get_name());
            let about_verb = arguments.iter().skip(1).any(is_verb);
            let error = about_verb.then(|| parse(brief()).err()).flatten().unwrap_or(error);
            return usage::tell(&error, &arguments, &mut screen);
        }
    };
    screen.format = output;
    let client = Client::new(&places.socket);
    let mut context = Context { places, client, screen, offline };
    let doing = verb.doing();
    let outcome = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(verb.run(&mut context)),
        Err(error) => Err(Failure::of("LB0609", format!("the runtime does not start: {error}"))),
    };
    let outcome = outcome.and_then(|exit| context.screen.flush().map(|()| exit).map_err(Into::into));
    outcome.unwrap_or_else(|failure| failure.tell(&doing, &mut context.screen))
}
