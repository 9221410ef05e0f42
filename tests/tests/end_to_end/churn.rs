//! Long-lived connections under whatever operators, backends and machines do, at random.
//!
//! `LB_CHURN_CONNECTIONS` and `LB_CHURN_ACTIONS` make it larger, `LB_SEED` makes it the same again; a failure names its seed
//! and says everything that was done.

use std::fmt::Display;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, ensure};
use lb_common::hash::mix;
use lb_tests::scene::{Plan, SERVICE, Scene};
use lb_tests::traffic::{Load, LoadSpec, Pool, PoolSpec, Sources};
use lb_tests::{Family, Host, claim, private_dir};
use libtest_mimic::Trial;
use nix::sys::signal::Signal;

pub fn claims() -> Vec<Trial> {
    vec![claim("connections live through whatever is done at random, and new ones find a backend", churn)]
}

/// Backends: the first one of the stable pool is left alone, so that new connections always find somebody.
const STABLE: usize = 3;
const CANARY: usize = 3;
/// Configured, or not, as the file of the day says.
const OPTIONAL: usize = 2;
/// Known by a file that comes and goes.
const DISCOVERED: usize = STABLE + CANARY - 1;
/// Where health checks knock.
const DOOR: u16 = 9000;

fn churn() -> Result<()> {
    let (connections, actions) = (number("LB_CHURN_CONNECTIONS", 500), number("LB_CHURN_ACTIONS", 40));
    let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    let seed = number("LB_SEED", time.as_nanos() as u64);
    let mut churn = Churn::start(seed)?;
    churn.scene.lbctl(&["set", "split", SERVICE, "40"])?;
    let client = churn.scene.lab.client(0);
    let pool = PoolSpec::new(churn.scene.target(), connections)
        .from(Sources::Crowd { first: 0, count: connections })
        .interval(Duration::from_secs(2));
    let pool = Pool::open(client, pool.timeout(Duration::from_secs(20)))?;
    let before = pool.check()?;
    ensure!(before.alive() == u64::from(connections) && before.alive.len() > STABLE, "{before:?}");
    let comers = LoadSpec::lines(churn.scene.target())
        .from(Sources::Crowd { first: 20_000, count: 20_000 })
        .rate(50.0)
        .timeout(Duration::from_secs(10));
    let comers = Load::start(client, comers)?;

    for _ in 0..actions {
        churn.act()?;
        let after = pool.check()?;
        ensure!(
            after.broken.is_empty() && after.alive == before.alive,
            "{} connections broke, the first one: {:?}; {}",
            after.broken.len(),
            after.broken.first(),
            churn.story()
        );
    }
    let comers = comers.stop()?;
    ensure!(comers.failed() == 0 && comers.answered() > 0, "{comers:?}; {}", churn.story());
    // Else it asserts nothing.
    ensure!(churn.refused * 4 <= churn.done.len(), "too much was refused; {}", churn.story());

    // Now somebody asks for it, and breaks what is there and nothing else.
    let victim = churn.scene.backend(1);
    churn.scene.lbctl(&["set", "state", &victim, "maint"])?;
    let after = pool.check()?;
    let others = after.broken.iter().filter(|broken| broken.server.as_deref() != Some("stable1")).count();
    ensure!(
        others == 0
            && after.alive_on("stable1") == 0
            && after.broken.len() as u64 == before.alive_on("stable1"),
        "{others} of others broke; {}",
        churn.story()
    );
    eprintln!(
        "churn: {connections} connections and {} that came meanwhile lived through {} actions ({} of them refused), seed {seed}",
        comers.answered(),
        churn.done.len(),
        churn.refused
    );
    Ok(())
}

fn number<T: FromStr>(name: &str, default: T) -> T {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

/// A service to which things are done.
struct Churn {
    scene: Scene,
    rng: u64,
    seed: u64,
    doors: Vec<Door>,
    /// Whom the file of discovery names.
    known: PathBuf,
    /// In the configuration file.
    weights: [u8; STABLE + CANARY],
    optional: bool,
    done: Vec<String>,
    refused: usize,
    begin: Instant,
}

impl Churn {
    fn start(seed: u64) -> Result<Self> {
        let dataplane = "sweep = \"500ms\"\ndrain = \"65s\"\n".to_owned();
        let mut scene =
            Scene::start(Plan { stable: STABLE, canary: CANARY, lines: true, dataplane, ..Plan::default() })?;
        let doors = (0..STABLE + CANARY).map(|i| Door::open(scene.lab.backend(i))).collect::<Result<_>>()?;
        let known = private_dir("churn")?.join("backends");
        scene.plan.health = format!(
            "[service.health]\ntype = \"tcp\"\nport = {DOOR}\ninterval = \"200ms\"\ntimeout = \"150ms\"\nhealthy = 1\nunhealthy = 2\n"
        );
        let (begin, weights) = (Instant::now(), [100; STABLE + CANARY]);
        let mut churn = Self {
            scene,
            rng: seed,
            seed,
            doors,
            known,
            weights,
            optional: true,
            done: vec![],
            refused: 0,
            begin,
        };
        churn.discover(true)?;
        churn.write()?;
        let file = churn.file();
        churn.scene.lbctl(&["apply", "-f", &file])?;
        churn.scene.wait_taking(STABLE + CANARY, Duration::from_secs(15))?;
        Ok(churn)
    }

    /// What was done so far.
    fn story(&self) -> String {
        format!("LB_SEED={}; done so far:\n{}\n{}", self.seed, self.done.join("\n"), self.scene.agent.log())
    }

    fn below(&mut self, end: u64) -> u64 {
        self.rng = self.rng.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.rng) % end
    }

    /// Anybody but the first one of the stable pool.
    fn somebody(&mut self) -> usize {
        1 + self.below((STABLE + CANARY - 1) as u64) as usize
    }

    /// Something, at random.
    fn act(&mut self) -> Result<()> {
        let (who, dice) = (self.somebody(), self.below(100));
        let backend = self.scene.backend(who);
        match dice {
            0..18 => {
                let weight = self.below(4) * self.below(100);
                self.lbctl(&["set", "weight", &backend, &weight.to_string()])
            }
            18..34 => {
                let split = self.below(1001) as f64 / 10.0;
                self.lbctl(&["set", "split", SERVICE, &split.to_string()])
            }
            34..48 => {
                let state = if self.below(2) == 0 { "drain" } else { "ready" };
                self.lbctl(&["set", "state", &backend, state])
            }
            48..56 => {
                let health = ["up", "down", "auto"][self.below(3) as usize];
                self.lbctl(&["set", "health", &backend, health])
            }
            56..62 => self.lbctl(&["rollback", SERVICE]),
            62..68 => self.lbctl(&["undo", SERVICE]),
            68..76 => {
                let open = self.below(3) > 0;
                self.doors[who].set(open);
                self.note(format!("{backend} {} its door", if open { "opens" } else { "shuts" }));
                Ok(())
            }
            76..81 => {
                let there = self.below(2) == 0;
                self.note(format!("the file of backends {}", if there { "names one" } else { "is empty" }));
                self.discover(there)
            }
            81..91 => {
                self.weights[who] = self.below(256) as u8;
                self.optional = self.below(3) > 0;
                self.write()?;
                let what = format!(
                    "with{} {OPTIONAL}, weights {:?}",
                    if self.optional { "" } else { "out" },
                    self.weights
                );
                if self.below(2) == 0 {
                    self.note(format!("SIGHUP {what}"));
                    self.scene.agent.process().signal(Signal::SIGHUP)
                } else {
                    let file = self.file();
                    self.note(what);
                    self.lbctl(&["apply", "-f", &file])
                }
            }
            _ => {
                let crash = self.below(2) == 0;
                self.note(format!(
                    "{}, and starts again",
                    if crash { "the agent crashes" } else { "the agent is stopped" }
                ));
                if crash {
                    self.scene.agent.kill9();
                } else {
                    self.scene.agent.stop(Duration::from_secs(20))?;
                }
                self.scene.agent.restart()?;
                self.scene.agent.wait_ready(Duration::from_secs(30))
            }
        }
    }

    fn note(&mut self, what: impl Display) {
        self.done.push(format!("{:8.3} {what}", self.begin.elapsed().as_secs_f64()));
    }

    /// The agent may refuse: a backend is gone, a canary is busy. It may not fail otherwise.
    fn lbctl(&mut self, arguments: &[&str]) -> Result<()> {
        let reply = self.scene.agent.lbctl(arguments)?;
        let refused = matches!(reply.code, Some(1 | 5));
        self.refused += usize::from(refused);
        let answer = if refused { reply.stderr.lines().next().unwrap_or_default() } else { "" };
        self.note(format!("lbctl {} {answer}", arguments.join(" ")));
        ensure!(refused || reply.code == Some(0), "{reply:?}; {}", self.story());
        Ok(())
    }

    fn file(&self) -> String {
        self.scene.agent.places().config.to_string_lossy().into_owned()
    }

    fn address(&self, i: usize) -> SocketAddr {
        (self.scene.lab.backend(i).ip(Family::V4), self.scene.plan.port).into()
    }

    /// The configuration file of the day.
    fn write(&mut self) -> Result<()> {
        let config = self.scene.plan.config(&self.scene.lab);
        let (head, _) = config.split_once("[[service.pool]]").context("a pool")?;
        let mut text = head.to_owned();
        for i in (0..DISCOVERED).filter(|&i| self.optional || i != OPTIONAL) {
            match i {
                0 => text += "[[service.pool]]\nname = \"stable\"\n",
                STABLE => {
                    text += &format!(
                        "[[service.pool]]\nname = \"canary\"\n[service.pool.discovery]\ntype = \"file\"\npath = \"{}\"\non_empty = \"clear\"\n",
                        self.known.display()
                    );
                }
                _ => {}
            }
            let weight = if i == 0 { 100 } else { self.weights[i] };
            text +=
                &format!("[[service.pool.backend]]\naddress = \"{}\"\nweight = {weight}\n", self.address(i));
        }
        self.scene.agent.write_config(&text)
    }

    /// Has the file of discovery name the last backend, or nobody.
    fn discover(&self, there: bool) -> Result<()> {
        let text = match there {
            true => format!("[[backends]]\naddress = \"{}\"\n", self.address(DISCOVERED)),
            false => "backends = []\n".to_owned(),
        };
        replace(&self.known, &text)
    }
}

fn replace(path: &Path, text: &str) -> Result<()> {
    let aside = path.with_extension("next");
    std::fs::File::create(&aside)?.write_all(text.as_bytes())?;
    Ok(std::fs::rename(aside, path)?)
}

/// A port that health checks knock at, while it is open.
struct Door(Arc<AtomicBool>);

impl Door {
    fn open(host: &Host) -> Result<Self> {
        let open = Arc::new(AtomicBool::new(true));
        let (said, namespace) = (Arc::clone(&open), host.namespace().clone());
        thread::spawn(move || {
            let mut listener = None;
            // The test has ended once nobody else can say anything.
            while Arc::strong_count(&said) > 1 {
                if !said.load(Ordering::Acquire) {
                    listener = None;
                } else if listener.is_none() {
                    listener = namespace.run(|| bind(DOOR)).ok();
                }
                while listener.as_ref().is_some_and(|listener: &TcpListener| listener.accept().is_ok()) {}
                thread::sleep(Duration::from_millis(10));
            }
        });
        Ok(Self(open))
    }

    fn set(&self, open: bool) {
        self.0.store(open, Ordering::Release);
    }
}

fn bind(port: u16) -> Result<TcpListener> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}
