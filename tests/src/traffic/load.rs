//! Many short flows, and who answered them.

mod probe;

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use tokio::{sync::watch, task::JoinSet};

use super::{
    Latency, Outcome, SourceRange, Sources, Tally, family_of, word_for,
    worker::{Control, Role, Worker},
};
use crate::Client;

/// A client process that opens flow after flow. Dropping it ends them.
#[derive(Debug)]
pub struct Load {
    worker: Worker,
}

impl Load {
    /// Starts a load that goes on until it is stopped, or its flows are used up.
    ///
    /// # Errors
    /// If the client process cannot be started.
    pub fn start(client: &Client, spec: LoadSpec) -> Result<Self> {
        let sources = spec.sources.of(client, family_of(spec.target));
        let worker =
            Worker::start(client, &Role::Load(Work { spec, sources })).context("cannot start a load")?;
        Ok(Self { worker })
    }

    /// Runs a load with a number of [`flows`](LoadSpec::flows) to its end.
    ///
    /// # Errors
    /// If the client process cannot be started, or dies.
    ///
    /// # Panics
    /// Without a number of flows: there would be no end.
    pub fn run(client: &Client, spec: LoadSpec) -> Result<Tally> {
        assert!(spec.flows.is_some(), "say how many flows to run");
        Self::start(client, spec)?.worker.ask(&Request::Finish)
    }

    /// What has been seen so far. See [`Tally::since`].
    ///
    /// # Errors
    /// If the client process has died.
    pub fn tally(&self) -> Result<Tally> {
        self.worker.ask(&Request::Tally)
    }

    /// Starts no more flows, waits for those under way, and tells what was seen.
    ///
    /// # Errors
    /// If the client process has died.
    pub fn stop(self) -> Result<Tally> {
        self.worker.ask(&Request::Stop)
    }
}

/// What a load is made of.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LoadSpec {
    target: SocketAddr,
    probe: Probe,
    concurrency: u32,
    timeout: Duration,
    flows: Option<u64>,
    /// Flows a second.
    rate: Option<f64>,
    #[serde(skip, default = "own")]
    sources: Sources,
}

const fn own() -> Sources {
    Sources::Own
}

/// What happens in a flow.
#[derive(Clone, Debug, Serialize, Deserialize)]
enum Probe {
    Lines,
    Http { path: String, requests: u32 },
    Udp,
}

impl LoadSpec {
    /// TCP connections with one line each, to a server of [lines](super::ServerSpec::lines).
    #[must_use]
    pub const fn lines(target: SocketAddr) -> Self {
        Self::new(target, Probe::Lines)
    }

    /// TCP connections with one HTTP request each. The server is known by its `x-server` header,
    /// or else by the body of its answer.
    #[must_use]
    pub fn http(target: SocketAddr, path: &str) -> Self {
        Self::new(target, Probe::Http { path: path.to_owned(), requests: 1 })
    }

    /// Exchanges of one datagram each way, every one from a socket of its own.
    #[must_use]
    pub const fn udp(target: SocketAddr) -> Self {
        Self::new(target, Probe::Udp)
    }

    /// So many HTTP requests on each connection, one after the other.
    #[must_use]
    pub fn requests_per_connection(mut self, count: u32) -> Self {
        if let Probe::Http { requests, .. } = &mut self.probe {
            *requests = count;
        }
        self
    }

    /// From these addresses in turn: flow n from source n, and again from the first.
    #[must_use]
    pub fn from(self, sources: Sources) -> Self {
        Self { sources, ..self }
    }

    /// So many flows, then an end.
    #[must_use]
    pub fn flows(self, flows: u64) -> Self {
        Self { flows: Some(flows), ..self }
    }

    /// So many flows at a time; 64 unless said otherwise.
    #[must_use]
    pub fn concurrency(self, concurrency: u32) -> Self {
        Self { concurrency, ..self }
    }

    /// At most so many flows a second; as many as there can be unless said otherwise.
    #[must_use]
    pub fn rate(self, flows_per_second: f64) -> Self {
        Self { rate: Some(flows_per_second), ..self }
    }

    /// How long connecting, and each answer, may take; 5 s unless said otherwise.
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    const fn new(target: SocketAddr, probe: Probe) -> Self {
        Self {
            target,
            probe,
            concurrency: 64,
            timeout: Duration::from_secs(5),
            flows: None,
            rate: None,
            sources: own(),
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Work {
    spec: LoadSpec,
    sources: SourceRange,
}

#[derive(Debug, Serialize, Deserialize)]
enum Request {
    Tally,
    Stop,
    Finish,
}

/// The worker's side: as many tasks as flows at a time.
pub(super) async fn work(work: Work, mut control: Control) -> Outcome {
    let stop = watch::Sender::new(false);
    let shared = Arc::new(Shared::new(work));
    let mut tasks = JoinSet::new();
    for _ in 0..shared.work.spec.concurrency {
        tasks.spawn(Arc::clone(&shared).run(stop.subscribe()));
    }
    control.answer(Ok(())).await?;
    while let Some(request) = control.next().await? {
        match request {
            Request::Tally => {}
            Request::Stop => {
                stop.send_replace(true);
                while tasks.join_next().await.is_some() {}
            }
            Request::Finish => while tasks.join_next().await.is_some() {},
        }
        let tally = shared.tally(!matches!(request, Request::Tally));
        control.answer(Ok(tally)).await?;
    }
    Ok(())
}

struct Shared {
    work: Work,
    start: Instant,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    /// The number of the next flow.
    next: u64,
    tally: Tally,
    indices: HashMap<String, u16>,
    latencies: Vec<Duration>,
}

/// Beyond so many flows, latencies and homes are no longer noted one by one.
const MAX_NOTED: usize = 1 << 20;

/// What a flow gave: who answered first, after how long; and how many answers in all.
struct Answered {
    server: String,
    latency: Duration,
    answers: u64,
}

impl Shared {
    fn new(work: Work) -> Self {
        Self { work, start: Instant::now(), seen: Mutex::default() }
    }

    async fn run(self: Arc<Self>, mut stop: watch::Receiver<bool>) {
        while let Some(number) = self.next_flow() {
            if let Some(rate) = self.work.spec.rate {
                let moment = self.start + Duration::from_secs_f64(number as f64 / rate);
                tokio::select! {
                    () = tokio::time::sleep_until(moment.into()) => {}
                    _ = stop.changed() => return,
                }
            }
            if *stop.borrow() {
                return;
            }
            let from = self.work.sources.address(number);
            let result = probe::run(&self.work.spec, from).await;
            self.note(number, result);
        }
    }

    fn next_flow(&self) -> Option<u64> {
        let mut seen = self.seen.lock().ok()?;
        let number = seen.next;
        if self.work.spec.flows.is_some_and(|flows| number >= flows) {
            return None;
        }
        seen.next += 1;
        Some(number)
    }

    fn note(&self, number: u64, result: Result<Answered, probe::Failure>) {
        let Ok(mut seen) = self.seen.lock() else {
            return;
        };
        let seen = &mut *seen;
        seen.tally.flows += 1;
        match result {
            Ok(answered) => {
                seen.tally.answers += answered.answers;
                if seen.latencies.len() < MAX_NOTED {
                    seen.latencies.push(answered.latency);
                }
                seen.note_home(number, &answered.server);
                *seen.tally.answered.entry(answered.server).or_default() += 1;
            }
            Err(failure) => {
                seen.tally.answers += failure.answers;
                *seen.tally.failed.entry(failure.why).or_default() += 1;
            }
        }
    }

    /// Homes are long, and only told at the end.
    fn tally(&self, with_homes: bool) -> Tally {
        let Ok(mut seen) = self.seen.lock() else {
            return Tally::default();
        };
        let latency = Latency::of(&mut seen.latencies);
        let homes = if with_homes { seen.tally.homes.clone() } else { Vec::new() };
        Tally { elapsed: self.start.elapsed(), latency, homes, ..seen.tally.clone() }
    }
}

impl Seen {
    fn note_home(&mut self, number: u64, server: &str) {
        let Ok(number) = usize::try_from(number) else {
            return;
        };
        if number >= MAX_NOTED {
            return;
        }
        let index = match self.indices.get(server) {
            Some(index) => *index,
            None => {
                let Ok(index) = u16::try_from(self.tally.names.len()) else {
                    return;
                };
                self.tally.names.push(server.to_owned());
                self.indices.insert(server.to_owned(), index);
                index
            }
        };
        if self.tally.homes.len() <= number {
            self.tally.homes.resize(number + 1, None);
        }
        self.tally.homes[number] = Some(index);
    }
}

impl From<std::io::Error> for probe::Failure {
    fn from(error: std::io::Error) -> Self {
        Self { why: word_for(&error), answers: 0 }
    }
}
