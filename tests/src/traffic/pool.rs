//! Long-lived connections, and what becomes of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncWriteExt as _, BufReader},
    net::TcpStream,
    sync::{
        Semaphore,
        mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
        watch,
    },
    time::Instant,
};

use super::{
    Outcome, SourceRange, Sources, connect, family_of, read_line, within, word_for,
    worker::{Control, Role, Worker},
};
use crate::Client;

/// Connections to a server of [lines](super::ServerSpec::lines), held by a process of their own.
///
/// Every `interval` a line goes through each, and comes back with the name of its server. A
/// connection that ends, or does not answer, or is answered by another server than at first, is
/// broken, and stays in the report.
#[derive(Debug)]
pub struct Pool {
    worker: Worker,
}

impl Pool {
    /// Opens the connections, and returns when each has been answered or has failed.
    ///
    /// # Errors
    /// If the client process cannot be started.
    pub fn open(client: &Client, spec: PoolSpec) -> Result<Self> {
        let sources = spec.sources.of(client, family_of(spec.target));
        let worker = Worker::start(client, &Role::Pool(Work { spec, sources }))
            .context("cannot start a pool of connections")?;
        Ok(Self { worker })
    }

    /// Sends a line through each connection now, waits for the answers, and reports.
    ///
    /// # Errors
    /// If the client process has died.
    pub fn check(&self) -> Result<PoolReport> {
        self.worker.ask(&Request::Check)
    }

    /// What is known without asking.
    ///
    /// # Errors
    /// If the client process has died.
    pub fn report(&self) -> Result<PoolReport> {
        self.worker.ask(&Request::Report)
    }
}

/// Which connections to hold.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PoolSpec {
    target: SocketAddr,
    connections: u32,
    interval: Duration,
    timeout: Duration,
    #[serde(skip, default = "own")]
    sources: Sources,
}

const fn own() -> Sources {
    Sources::Own
}

impl PoolSpec {
    /// So many connections from the client's own address, a line a second, and 5 s of patience.
    #[must_use]
    pub const fn new(target: SocketAddr, connections: u32) -> Self {
        Self {
            target,
            connections,
            interval: Duration::from_secs(1),
            timeout: Duration::from_secs(5),
            sources: own(),
        }
    }

    /// From these addresses in turn.
    #[must_use]
    pub const fn from(self, sources: Sources) -> Self {
        Self { sources, ..self }
    }

    /// The time between lines on one connection.
    #[must_use]
    pub const fn interval(self, interval: Duration) -> Self {
        Self { interval, ..self }
    }

    /// How long an answer, or the connection at first, may take.
    #[must_use]
    pub const fn timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }
}

/// How the connections are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolReport {
    /// Those that answer, by server.
    pub alive: BTreeMap<String, u64>,
    /// Those that could not be opened, or broke later.
    pub broken: Vec<Broken>,
    /// Lines answered, over all connections.
    pub answers: u64,
}

impl PoolReport {
    /// How many are unbroken.
    #[must_use]
    pub fn alive(&self) -> u64 {
        self.alive.values().sum()
    }

    /// How many of the unbroken ones are on this server.
    #[must_use]
    pub fn alive_on(&self, server: &str) -> u64 {
        self.alive.get(server).copied().unwrap_or(0)
    }
}

/// A connection that is no more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Broken {
    /// Its number, counted from 0.
    pub connection: u32,
    /// Its own address.
    pub source: Option<SocketAddr>,
    /// Who answered it, if it was ever open.
    pub server: Option<String>,
    /// One word, or a few.
    pub why: String,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Work {
    spec: PoolSpec,
    sources: SourceRange,
}

#[derive(Debug, Serialize, Deserialize)]
enum Request {
    Check,
    Report,
}

/// The worker's side: one task a connection, and this one to keep the book.
pub(super) async fn work(work: Work, mut control: Control) -> Outcome {
    let (sender, events) = unbounded_channel();
    let rounds = watch::Sender::new(Round { number: 0, spread: Duration::ZERO });
    // More at a time would overflow the servers' queues of half-open connections.
    let opening = Arc::new(Semaphore::new(256));
    for connection in 0..work.spec.connections {
        let holder = Holder {
            connection,
            from: work.sources.address(connection.into()),
            spec: work.spec.clone(),
            rounds: rounds.subscribe(),
            events: sender.clone(),
        };
        tokio::spawn(holder.hold(Arc::clone(&opening)));
    }
    drop(sender);
    let mut book = Book { events, waiting: (0..work.spec.connections).collect(), ..Book::default() };
    book.settle().await;
    control.answer(Ok(())).await?;

    let mut ticks = tokio::time::interval_at(Instant::now() + work.spec.interval, work.spec.interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                if book.waiting.is_empty() {
                    book.start(&rounds, work.spec.interval);
                }
            }
            event = book.events.recv() => {
                let Some(event) = event else {
                    // The last connection is gone: only the report is left to give.
                    return answer_rest(book, control).await;
                };
                book.note(event);
            }
            request = control.next() => match request? {
                None => return Ok(()),
                Some(Request::Report) => control.answer(Ok(book.report())).await?,
                Some(Request::Check) => {
                    book.settle().await;
                    book.start(&rounds, Duration::ZERO);
                    book.settle().await;
                    control.answer(Ok(book.report())).await?;
                }
            }
        }
    }
}

async fn answer_rest(book: Book, mut control: Control) -> Outcome {
    while control.next::<Request>().await?.is_some() {
        control.answer(Ok(book.report())).await?;
    }
    Ok(())
}

/// A request to all connections to send a line, each at its moment within `spread`.
#[derive(Clone, Copy)]
struct Round {
    number: u64,
    spread: Duration,
}

enum Event {
    Answered { connection: u32, server: Arc<str> },
    Broken(Broken),
}

struct Book {
    events: UnboundedReceiver<Event>,
    /// Who has yet to answer in this round.
    waiting: BTreeSet<u32>,
    alive: BTreeMap<u32, Arc<str>>,
    broken: Vec<Broken>,
    answers: u64,
}

impl Default for Book {
    fn default() -> Self {
        Self {
            events: unbounded_channel().1,
            waiting: BTreeSet::new(),
            alive: BTreeMap::new(),
            broken: Vec::new(),
            answers: 0,
        }
    }
}

impl Book {
    fn start(&mut self, rounds: &watch::Sender<Round>, spread: Duration) {
        self.waiting = self.alive.keys().copied().collect();
        rounds.send_modify(|round| *round = Round { number: round.number + 1, spread });
    }

    /// Until everybody has answered or broken; each has its own timeout.
    async fn settle(&mut self) {
        while !self.waiting.is_empty() {
            let Some(event) = self.events.recv().await else {
                return;
            };
            self.note(event);
        }
    }

    fn note(&mut self, event: Event) {
        match event {
            Event::Answered { connection, server } => {
                self.waiting.remove(&connection);
                self.alive.insert(connection, server);
                self.answers += 1;
            }
            Event::Broken(broken) => {
                self.waiting.remove(&broken.connection);
                self.alive.remove(&broken.connection);
                self.broken.push(broken);
            }
        }
    }

    fn report(&self) -> PoolReport {
        let mut alive = BTreeMap::new();
        for server in self.alive.values() {
            *alive.entry(server.to_string()).or_default() += 1;
        }
        PoolReport { alive, broken: self.broken.clone(), answers: self.answers }
    }
}

/// What a connection's task knows.
struct Holder {
    connection: u32,
    from: SocketAddr,
    spec: PoolSpec,
    rounds: watch::Receiver<Round>,
    events: UnboundedSender<Event>,
}

impl Holder {
    async fn hold(mut self, opening: Arc<Semaphore>) {
        let (mut source, mut server) = (None, None);
        let why = match self.open(&opening, &mut source, &mut server).await {
            Ok(stream) => self.keep(stream, &mut server).await,
            Err(error) => word_for(&error),
        };
        let server = server.map(|server| server.to_string());
        let broken = Broken { connection: self.connection, source, server, why };
        // The book is only gone when the worker ends.
        let _ = self.events.send(Event::Broken(broken));
    }

    async fn open(
        &mut self,
        opening: &Semaphore,
        source: &mut Option<SocketAddr>,
        server: &mut Option<Arc<str>>,
    ) -> io::Result<BufReader<TcpStream>> {
        let _turn = opening.acquire().await.map_err(io::Error::other)?;
        let stream = within(self.spec.timeout, connect(self.from, self.spec.target)).await?;
        *source = Some(stream.local_addr()?);
        let mut stream = BufReader::with_capacity(256, stream);
        *server = Some(self.ask(&mut stream, 0).await?);
        Ok(stream)
    }

    /// Answers rounds until the connection breaks, and returns why it did.
    async fn keep(&mut self, mut stream: BufReader<TcpStream>, server: &mut Option<Arc<str>>) -> String {
        let mut done = 0;
        loop {
            if let Some(server) = server.clone() {
                let _ = self.events.send(Event::Answered { connection: self.connection, server });
            }
            let round = match self.next_round(&mut stream, done).await {
                Ok(round) => round,
                Err(error) => return word_for(&error),
            };
            done = round;
            match self.ask(&mut stream, round).await {
                Ok(name) if Some(&name) == server.as_ref() => {}
                Ok(name) => return format!("answered by {name} instead"),
                Err(error) => return word_for(&error),
            }
        }
    }

    /// Waits for this connection's moment in the next round. Nothing may come meanwhile, so
    /// whatever is to be read is the end.
    async fn next_round(&mut self, stream: &mut BufReader<TcpStream>, done: u64) -> io::Result<u64> {
        let spread = f64::from(self.connection) / f64::from(self.spec.connections.max(1));
        let moment = async {
            let round = *self.rounds.wait_for(|round| round.number > done).await.map_err(io::Error::other)?;
            if !round.spread.is_zero() {
                tokio::time::sleep(round.spread.mul_f64(spread)).await;
            }
            Ok(round.number)
        };
        tokio::select! {
            round = moment => round,
            line = read_line(stream) => Err(line
                .map_or_else(|error| error, |line| io::Error::other(format!("unasked: {line}")))),
        }
    }

    /// Sends a line and returns the name of who answered.
    async fn ask(&self, stream: &mut BufReader<TcpStream>, round: u64) -> io::Result<Arc<str>> {
        let line = format!("{} {round}", self.connection);
        stream.write_all(format!("{line}\n").as_bytes()).await?;
        let answer = within(self.spec.timeout, read_line(stream)).await?;
        match answer.split_once(' ') {
            Some((name, echo)) if echo == line => Ok(name.into()),
            _ => Err(io::Error::other(format!("answered {answer:?} to {line:?}"))),
        }
    }
}
