//! The wrapper of the agent, shown on programs that only play it.

use std::{
    env, fs,
    os::unix::{fs::PermissionsExt as _, net::UnixListener},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    Agent, AgentSpec, Finished, Namespace,
    agent::{Places, built},
    claim, private_dir,
};
use libtest_mimic::Trial;

use crate::leftovers::ROLE;

pub fn claims() -> Vec<Trial> {
    vec![
        claim("an agent is ready when its socket takes connections", becomes_ready),
        claim("an agent that ends early is reported with its log", ends_early),
        claim("an agent keeps its places through a crash", keeps_its_places),
        claim("what lbctl says comes with its exit code", lbctl_replies),
        claim("a program that was not built is missed with the remedy", not_built),
    ]
}

const SOON: Duration = Duration::from_secs(10);

/// A directory with an `lbd` that is a copy of this program, and an `lbctl` in shell.
fn actors() -> Result<PathBuf> {
    let directory = private_dir("actors")?;
    let own = env::current_exe()?;
    let lbd = format!("#!/bin/sh\n{ROLE}=lbd exec {} \"$@\"\n", own.display());
    let lbctl = "#!/bin/sh\n\
                 echo \"{\\\"socket\\\": \\\"$LB_SOCKET\\\", \\\"verb\\\": \\\"$1\\\"}\"\n\
                 echo told >&2\nexit ${2:-0}\n";
    for (name, text) in [("lbd", lbd.as_str()), ("lbctl", lbctl)] {
        let path = directory.join(name);
        fs::write(&path, text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    }
    Ok(directory)
}

/// Counts its starts in the state directory, and opens its socket late.
pub fn play_lbd() -> Result<()> {
    let place = |name| env::var_os(name).map(PathBuf::from).context(name);
    let (socket, config) = (place("LB_SOCKET")?, place("LB_CONFIG")?);
    let starts = place("LB_STATE_DIR")?.join("starts");
    fs::write(&starts, fs::read_to_string(&starts).unwrap_or_default() + "x")?;
    let config = fs::read_to_string(config)?;
    ensure!(config != "bad", "the configuration is bad");
    ensure!(Path::new("/sys/fs/bpf").is_dir() && env::var("LB_PIN_DIR")?.starts_with("/sys/fs/bpf/"));
    println!("starting with {config}");
    thread::sleep(Duration::from_millis(100));
    let _ = fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket)?;
    for connection in listener.incoming() {
        drop(connection?);
    }
    Ok(())
}

fn start(config: &str) -> Result<Agent> {
    let namespace = Namespace::new("agent")?;
    Agent::start(&namespace, AgentSpec::new(config).programs_in(actors()?))
}

fn starts(places: &Places) -> Result<usize> {
    Ok(fs::read_to_string(places.state.join("starts"))?.len())
}

fn becomes_ready() -> Result<()> {
    let mut agent = start("good")?;
    ensure!(!agent.places().socket.exists(), "it opens its socket late");
    agent.wait_ready(SOON)?;
    ensure!(agent.log().contains("starting with good"), "{}", agent.log());
    Ok(())
}

fn ends_early() -> Result<()> {
    let error = start("bad")?.wait_ready(SOON).unwrap_err().to_string();
    ensure!(error.contains("Exited(1)") && error.contains("the configuration is bad"), "{error}");
    Ok(())
}

fn keeps_its_places() -> Result<()> {
    let mut agent = start("one")?;
    agent.wait_ready(SOON)?;
    agent.kill9();
    ensure!(agent.process().finished()? == Some(Finished::Killed(9)));
    agent.write_config("two")?;
    agent.restart()?;
    // The dead one's socket is still there, and takes nobody.
    agent.wait_ready(SOON)?;
    ensure!(agent.log().contains("starting with two"), "{}", agent.log());
    ensure!(starts(agent.places())? == 2);
    ensure!(agent.stop(SOON)? == Finished::Killed(15));
    agent.restart_with(actors()?)?;
    agent.wait_ready(SOON)?;
    ensure!(starts(agent.places())? == 3);

    let other = start("three")?;
    ensure!(other.places().socket != agent.places().socket);
    ensure!(other.places().pins != agent.places().pins);
    Ok(())
}

fn lbctl_replies() -> Result<()> {
    let agent = start("good")?;
    let reply = agent.lbctl(&["status"])?.done()?;
    ensure!(reply.json()?["verb"] == "status");
    ensure!(reply.json()?["socket"] == agent.places().socket.to_str().unwrap_or_default());
    ensure!(reply.stderr == "told\n");
    let degraded = agent.lbctl(&["status", "3"])?;
    ensure!(degraded.code == Some(3));
    let error = degraded.done().unwrap_err().to_string();
    ensure!(error.contains("lbctl status 3 exited with Some(3)") && error.contains("told"), "{error}");
    agent.lbctl(&["status", "3"])?.exits(3)?;
    Ok(())
}

fn not_built() -> Result<()> {
    let error = built("no-such-program").unwrap_err().to_string();
    ensure!(error.contains("cargo build") && error.contains("LB_BIN_DIR"), "{error}");
    ensure!(built(&own_name()?)?.is_file());
    Ok(())
}

fn own_name() -> Result<String> {
    let own = env::current_exe()?;
    Ok(own.file_name().context("no name")?.to_string_lossy().into_owned())
}
