//! The built `lbd` and `lbctl`, at private places.

use std::{
    env, fs,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Command, Output},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::Signal;

use crate::{Finished, Namespace, Process, enter::own_program, private_dir};

/// How an agent is to be started.
#[derive(Clone, Debug)]
pub struct AgentSpec {
    config: String,
    environment: Vec<(String, String)>,
    arguments: Vec<String>,
    programs: Option<PathBuf>,
}

impl AgentSpec {
    /// With this configuration (the text of `lb.toml`).
    #[must_use]
    pub fn new(config: impl Into<String>) -> Self {
        Self { config: config.into(), environment: Vec::new(), arguments: Vec::new(), programs: None }
    }

    /// With the programs in this directory, instead of those built beside the test: for example
    /// of another version.
    #[must_use]
    pub fn programs_in(mut self, directory: impl Into<PathBuf>) -> Self {
        self.programs = Some(directory.into());
        self
    }

    /// With an environment variable besides those that name the places.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With an argument on `lbd`'s command line.
    #[must_use]
    pub fn arg(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }
}

/// An `lbd` in a namespace, with a configuration, socket, state and pin directory of its own that
/// outlive the process, so that it can be killed and started again.
#[derive(Debug)]
pub struct Agent {
    namespace: Namespace,
    spec: AgentSpec,
    places: Places,
    process: Process,
}

impl Agent {
    /// Starts `lbd`. It is not ready yet: see [`wait_ready`](Self::wait_ready).
    ///
    /// # Errors
    /// If the program was not built or cannot be started.
    pub fn start(namespace: &Namespace, spec: AgentSpec) -> Result<Self> {
        let places = Places::new()?;
        fs::write(&places.config, &spec.config)?;
        let process = namespace.spawn(places.daemon(&spec)?)?;
        Ok(Self { namespace: namespace.clone(), spec, places, process })
    }

    /// Waits until the agent takes connections on its socket.
    ///
    /// # Errors
    /// If it ends before, or `timeout` is over.
    pub fn wait_ready(&mut self, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        while UnixStream::connect(&self.places.socket).is_err() {
            if let Some(end) = self.process.finished()? {
                bail!("lbd ended before it was ready: {end:?}\n{}", self.process.log());
            }
            if Instant::now() >= deadline {
                bail!("lbd is not ready after {timeout:?}\n{}", self.process.log());
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Kills it as a crash would.
    pub fn kill9(&mut self) {
        self.process.kill9();
    }

    /// Asks it to end (`SIGTERM`) and waits until it has.
    ///
    /// # Errors
    /// If it still runs after `timeout`.
    pub fn stop(&mut self, timeout: Duration) -> Result<Finished> {
        self.process.signal(Signal::SIGTERM)?;
        self.process.wait(timeout)
    }

    /// Starts it again at the same places, from now on with other programs.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn restart_with(&mut self, directory: impl Into<PathBuf>) -> Result<()> {
        self.spec.programs = Some(directory.into());
        self.restart()
    }

    /// The same, this time with these environment variables, too.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn restart_with_env(
        &mut self,
        directory: impl Into<PathBuf>,
        environment: &[(&str, &str)],
    ) -> Result<()> {
        self.spec.programs = Some(directory.into());
        self.process.kill9();
        let mut command = self.places.command("lbd", &self.spec)?;
        command.envs(environment.iter().copied());
        self.process = self.namespace.spawn(command)?;
        Ok(())
    }

    /// Starts it again at the same places, after [`kill9`](Self::kill9) or [`stop`](Self::stop).
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn restart(&mut self) -> Result<()> {
        self.restart_saying(&[])
    }

    /// The same, with these arguments on the command line, this time only.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn restart_saying(&mut self, arguments: &[&str]) -> Result<()> {
        self.process.kill9();
        let mut command = self.places.command("lbd", &self.spec)?;
        command.args(arguments);
        self.process = self.namespace.spawn(command)?;
        Ok(())
    }

    /// Starts `lbctl` against this agent and does not wait for it.
    ///
    /// # Errors
    /// If the program was not built or cannot be started.
    pub fn begin_lbctl(&self, arguments: &[&str]) -> Result<Process> {
        let mut command = self.places.command("lbctl", &self.spec)?;
        command.args(arguments);
        self.namespace.spawn(command)
    }

    /// Runs `lbctl` against this agent, in its namespace.
    ///
    /// # Errors
    /// If the program was not built or cannot be started; not if it fails.
    pub fn lbctl(&self, arguments: &[&str]) -> Result<Reply> {
        let mut command = self.places.command("lbctl", &self.spec)?;
        command.args(arguments);
        let output = self.namespace.output(command)?;
        Ok(Reply::of(arguments, &output))
    }

    /// Runs a script in its namespace that calls `lbctl` against this agent.
    ///
    /// # Errors
    /// If it cannot be started; not if it fails.
    pub fn run(&self, script: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Result<Reply> {
        let lbctl = built("lbctl")?;
        let home = lbctl.parent().context("lbctl lies somewhere")?.display().to_string();
        let path = env::var("PATH").unwrap_or_default();
        let mut command = Command::new(script);
        self.places.name_in(&mut command);
        command.args(arguments).env("PATH", format!("{home}:{path}")).envs(environment.iter().copied());
        let output = self.namespace.output(command)?;
        Ok(Reply::of(&[&[script], arguments].concat(), &output))
    }

    /// Writes another configuration. The agent does not read it by itself.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write_config(&mut self, config: &str) -> Result<()> {
        config.clone_into(&mut self.spec.config);
        Ok(fs::write(&self.places.config, config)?)
    }

    /// Where everything of this agent lies.
    #[must_use]
    pub fn places(&self) -> &Places {
        &self.places
    }

    /// The process itself.
    #[must_use]
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// What it has printed since its last start.
    #[must_use]
    pub fn log(&self) -> String {
        self.process.log()
    }
}

/// Its maps go with it: those of all agents of a run together are more than a machine has memory for.
impl Drop for Agent {
    fn drop(&mut self) {
        // Not there: it did not get that far.
        _ = fs::remove_dir_all(&self.places.pins);
    }
}

/// The places of one agent, in the run's private mounts.
#[derive(Clone, Debug)]
pub struct Places {
    /// `LB_CONFIG`
    pub config: PathBuf,
    /// `LB_SOCKET`
    pub socket: PathBuf,
    /// `LB_STATE_DIR`
    pub state: PathBuf,
    /// `LB_PIN_DIR`
    pub pins: PathBuf,
    /// `LB_METRICS`, on the namespace's own loopback
    pub metrics: String,
}

impl Places {
    fn new() -> Result<Self> {
        let home = private_dir("agent")?;
        let state = home.join("state");
        fs::create_dir(&state)?;
        let name = home.file_name().unwrap_or_default();
        Ok(Self {
            config: home.join("lb.toml"),
            socket: home.join("lbd.sock"),
            state,
            pins: Path::new("/sys/fs/bpf").join(name),
            metrics: "127.0.0.1:9650".to_owned(),
        })
    }

    fn daemon(&self, spec: &AgentSpec) -> Result<Command> {
        let mut command = self.command("lbd", spec)?;
        command.args(&spec.arguments);
        Ok(command)
    }

    /// Tells a command of these places.
    fn name_in(&self, command: &mut Command) {
        command
            .env("LB_CONFIG", &self.config)
            .env("LB_SOCKET", &self.socket)
            .env("LB_STATE_DIR", &self.state)
            .env("LB_PIN_DIR", &self.pins)
            .env("LB_METRICS", &self.metrics);
    }

    fn command(&self, program: &str, spec: &AgentSpec) -> Result<Command> {
        let path = match &spec.programs {
            Some(directory) => directory.join(program),
            None => built(program)?,
        };
        let mut command = Command::new(path);
        self.name_in(&mut command);
        command.envs(spec.environment.iter().map(|(name, value)| (name, value)));
        Ok(command)
    }
}

/// What an `lbctl` said.
#[derive(Clone, Debug)]
pub struct Reply {
    arguments: String,
    /// The exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// What it printed as its result.
    pub stdout: String,
    /// What it printed beside.
    pub stderr: String,
}

impl Reply {
    fn of(arguments: &[&str], output: &Output) -> Self {
        Self {
            arguments: arguments.join(" "),
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// The reply itself, if the exit code is 0.
    ///
    /// # Errors
    /// Otherwise, with what it printed.
    pub fn done(self) -> Result<Self> {
        self.exits(0)
    }

    /// The reply itself, if the exit code is `code`.
    ///
    /// # Errors
    /// Otherwise, with what it printed.
    pub fn exits(self, code: i32) -> Result<Self> {
        if self.code == Some(code) {
            return Ok(self);
        }
        bail!(
            "lbctl {} exited with {:?} instead of {code}\n{}{}",
            self.arguments,
            self.code,
            self.stdout,
            self.stderr
        )
    }

    /// What it printed, as JSON.
    ///
    /// # Errors
    /// If it is not.
    pub fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_str(&self.stdout).with_context(|| {
            format!("lbctl {} printed no JSON:\n{}{}", self.arguments, self.stdout, self.stderr)
        })
    }
}

/// The path of a program of the workspace: in `LB_BIN_DIR`, else beside the running one or above
/// (test binaries lie in `deps/`).
///
/// # Errors
/// If it is in none of these places.
pub fn built(program: &str) -> Result<PathBuf> {
    let places: Vec<PathBuf> = match env::var_os("LB_BIN_DIR") {
        Some(place) => vec![place.into()],
        None => own_program()?.ancestors().skip(1).take(2).map(Path::to_owned).collect(),
    };
    places.iter().map(|place| place.join(program)).find(|path| path.is_file()).with_context(|| {
        format!(
            "{program} is not in {}. Build it first (`cargo build --bins`), or say in LB_BIN_DIR where it is",
            places.iter().map(|place| place.display().to_string()).collect::<Vec<_>>().join(" or ")
        )
    })
}
