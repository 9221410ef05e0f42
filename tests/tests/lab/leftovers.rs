//! Whatever ends a run, nothing of it stays.

use std::{
    collections::HashMap,
    env, fs,
    io::{BufRead as _, BufReader, Write as _, stdout},
    os::{
        fd::{AsFd as _, FromRawFd as _, OwnedFd},
        unix::process::{CommandExt as _, ExitStatusExt as _},
    },
    path::Path,
    process::{self, Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use lb_tests::{
    Finished, Lab, Mac, Namespace, VethEnd,
    bpf::{pin, program_exists, program_id},
    claim, private_dir, programs,
    traffic::{Load, LoadSpec, Pool, PoolSpec, Server, ServerSpec},
};
use libtest_mimic::Trial;
use nix::{
    sys::signal::{SigHandler, Signal, kill, signal},
    unistd::Pid,
};

pub fn claims() -> Vec<Trial> {
    vec![
        claim("kill -9 of a run leaves nothing", || nothing_is_left_after(Signal::SIGKILL)),
        claim("Ctrl-C leaves nothing", || nothing_is_left_after(Signal::SIGINT)),
        claim("kill -9 of a run's first process leaves nothing", first_process_dies),
        claim("a dropped process takes its children along", group_dies),
        claim("a run without root says that it needs it", without_root),
        claim("a failing claim shows the logs of its processes", failing_claim_shows_logs),
        claim("a claim that panics fails alone", panics_are_failures),
    ]
}

pub const ROLE: &str = "LB_LAB_TEST_ROLE";
const PIN: &str = "/sys/fs/bpf/victim";

/// Copies of this program play the parts that end badly.
pub fn play_a_role_if_asked() {
    let role = env::var(ROLE).unwrap_or_default();
    let body: fn() -> Result<()> = match role.as_str() {
        "" => return,
        "victim" => play_victim,
        "lbd" => crate::agent::play_lbd,
        "failing" => {
            let claims = vec![
                claim("prints and fails", || {
                    let namespace = Namespace::new("any")?;
                    let mut shell = Command::new("sh");
                    shell.args(["-c", "echo words of the child"]);
                    let mut child = namespace.spawn(shell)?;
                    child.wait(Duration::from_secs(5))?;
                    bail!("as planned")
                }),
                claim("panics", || panic!("also planned")),
                claim("holds", || Ok(())),
            ];
            // The role is not for the copies that this copy starts.
            process::exit(i32::from(lb_tests::run(claims) != process::ExitCode::SUCCESS))
        }
        other => panic!("unknown role {other}"),
    };
    if let Err(error) = body() {
        eprintln!("{error:#}");
        process::exit(1);
    }
}

/// Makes one of everything, tells its program's id, and waits to be killed.
fn play_victim() -> Result<()> {
    lb_tests::enter()?;
    // SAFETY: the test that starts a victim gives it a namespace as its standard input.
    let witness = Namespace::adopt("witness", unsafe { OwnedFd::from_raw_fd(0) });
    let lab = Lab::builder().backends(2).build()?;
    let end = VethEnd { namespace: &witness, name: "witness", mac: Mac([2, 9, 9, 9, 9, 1]) };
    lab.balancer().connect("witness", Mac([2, 9, 9, 9, 9, 2]), end, 1500)?;
    let server = Server::start(lab.backend(0), ServerSpec::lines("b0", 7000))?;
    let target = (lab.backend(0).v4(), 7000).into();
    let pool = Pool::open(lab.client(0), PoolSpec::new(target, 10))?;
    let load = Load::start(lab.client(0), LoadSpec::lines(target).rate(10.0))?;
    let mut daemon = Command::new("sh");
    daemon.args(["-c", "setsid sh -c 'sleep 1000 & sleep 1000' & exec sleep 1000"]);
    let daemon = lab.balancer().spawn(daemon)?;
    let program = programs::returning(2)?;
    pin(&program, c"/sys/fs/bpf/victim")?;
    println!("{}", program_id(&program)?);
    stdout().flush()?;
    thread::sleep(Duration::from_secs(600));
    drop((server, pool, load, daemon));
    Ok(())
}

struct Victim {
    witness: Namespace,
    child: Child,
    program: u32,
    processes: Vec<i32>,
}

impl Victim {
    fn start() -> Result<Self> {
        let witness = Namespace::new("witness")?;
        let mut command = Command::new(env::current_exe()?);
        command.env(ROLE, "victim").stdin(witness.as_fd().try_clone_to_owned()?).stdout(Stdio::piped());
        // A shell that starts tests in the background has Ctrl-C ignored in them, and in whatever they start.
        // SAFETY: one system call.
        unsafe {
            command.pre_exec(|| Ok(signal(Signal::SIGINT, SigHandler::SigDfl).map(drop)?));
        }
        let mut child = command.spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("no output")?).read_line(&mut line)?;
        let program = line.trim().parse().context("the victim did not get ready")?;
        let root = child.id().cast_signed();
        // The namespace's processes are seen from outside once the shells have started them.
        let deadline = Instant::now() + Duration::from_secs(5);
        let processes = loop {
            let processes = descendants(root)?;
            // The run itself, three workers, a shell, its sleep, and three of the daemon.
            if processes.len() >= 7 || Instant::now() > deadline {
                break processes;
            }
            thread::sleep(Duration::from_millis(20));
        };
        ensure!(processes.len() >= 7, "only {processes:?} were started");
        ensure!(program_exists(program)?);
        ensure!(!Path::new(PIN).exists(), "a pin of another run is seen");
        ensure!(witness.links()?.contains(&"witness".to_owned()));
        Ok(Self { witness, child, program, processes })
    }

    /// Waits for the end of the copy, then for that of everything that it had.
    fn expect_nothing_left(mut self) -> Result<process::ExitStatus> {
        let status = self.child.wait()?;
        let witness = self.witness;
        eventually("its processes", || {
            Ok(self.processes.iter().all(|id| kill(Pid::from_raw(*id), None).is_err()))
        })?;
        eventually("its namespaces", || Ok(!witness.links()?.contains(&"witness".to_owned())))?;
        eventually("its pinned program", || Ok(!program_exists(self.program)?))?;
        ensure!(!Path::new(PIN).exists());
        Ok(status)
    }
}

fn nothing_is_left_after(signal: Signal) -> Result<()> {
    let victim = Victim::start()?;
    kill(Pid::from_raw(victim.child.id().cast_signed()), signal)?;
    let status = victim.expect_nothing_left()?;
    ensure!(status.signal() == Some(signal as i32), "{status:?}");
    Ok(())
}

fn first_process_dies() -> Result<()> {
    let victim = Victim::start()?;
    let outside = victim.child.id().cast_signed();
    let first = *children()?.get(&outside).and_then(|of| of.first()).context("no child")?;
    kill(Pid::from_raw(first), Signal::SIGKILL)?;
    let status = victim.expect_nothing_left()?;
    ensure!(status.code() == Some(128 + Signal::SIGKILL as i32), "{status:?}");
    Ok(())
}

fn group_dies() -> Result<()> {
    let namespace = Namespace::new("group")?;
    let mut shell = Command::new("sh");
    shell.args(["-c", "sleep 1000 & echo $!; wait"]);
    let mut process = namespace.spawn(shell)?;
    let mut child = None;
    eventually("a line with the child's id", || {
        child = process.log().trim().parse::<i32>().ok();
        Ok(child.is_some())
    })?;
    let child = Pid::from_raw(child.context("no child")?);
    kill(child, None).context("the child runs")?;
    ensure!(process.finished()?.is_none());
    process.kill9();
    ensure!(process.finished()? == Some(Finished::Killed(9)));
    // An orphan stays as a zombie of the run's first process, which is enough of an end.
    eventually("the child", || {
        let stat = fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        Ok(stat.is_empty() || stat.contains(") Z "))
    })
}

fn without_root() -> Result<()> {
    // The target directory may be closed to others.
    let copy = private_dir("copy")?.join("lab");
    fs::copy(env::current_exe()?, &copy)?;
    let output = Command::new(&copy).uid(65_534).gid(65_534).output()?;
    ensure!(!output.status.success());
    let words = String::from_utf8_lossy(&output.stderr);
    ensure!(words.contains("needs root") && words.contains("sudo"), "{words}");
    let listed = Command::new(&copy).arg("--list").uid(65_534).output()?;
    ensure!(listed.status.success(), "listing needs no privilege");
    Ok(())
}

fn output_of_failing_run() -> Result<String> {
    let output = Command::new(env::current_exe()?).env(ROLE, "failing").output()?;
    ensure!(output.status.code() == Some(1), "{:?}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn failing_claim_shows_logs() -> Result<()> {
    let words = output_of_failing_run()?;
    ensure!(words.contains("as planned") && words.contains("words of the child"), "{words}");
    Ok(())
}

fn panics_are_failures() -> Result<()> {
    let words = output_of_failing_run()?;
    ensure!(words.contains("also planned"), "{words}");
    ensure!(words.contains("1 passed; 2 failed"), "{words}");
    Ok(())
}

fn eventually(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds()? {
        ensure!(Instant::now() < deadline, "still waiting for {what}");
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// All processes below `root`, and itself.
fn descendants(root: i32) -> Result<Vec<i32>> {
    let children = children()?;
    let (mut found, mut next) = (vec![root], 0);
    while let Some(id) = found.get(next) {
        found.extend(children.get(id).into_iter().flatten().copied().collect::<Vec<_>>());
        next += 1;
    }
    Ok(found)
}

/// The children of each process.
fn children() -> Result<HashMap<i32, Vec<i32>>> {
    let mut children = HashMap::<i32, Vec<i32>>::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(id) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        // "id (name) state parent": the name may have anything in it.
        let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1));
        if let Some(parent) = parent.and_then(|parent| parent.parse().ok()) {
            children.entry(parent).or_default().push(id);
        }
    }
    Ok(children)
}
