//! Thousands of clients that never stop asking, and a note of every request.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use lb_tests::{Client, Crowd, Family};
use tokio::{
    runtime::{Builder, Handle},
    sync::{Notify, Semaphore},
    time::{MissedTickBehavior, interval, sleep},
};

use crate::{
    http::{Connection, Failure},
    stage::SERVERS,
};

/// How many addresses requests come from, in turn.
pub const CLIENTS: u32 = 16_000;
/// Requests a second, each on a connection of its own; fewer on a machine that cannot.
pub const RATE: f64 = 1_500.0;
/// Requests under way at a time.
const AT_A_TIME: usize = 512;
/// The time between requests on a long-lived connection.
const HELD_INTERVAL: Duration = Duration::from_secs(1);
/// Long-lived connections come from addresses that nothing else comes from.
const FIRST_HOLDER: u32 = 100_000;

/// A client host at work. Dropping it ends that.
#[derive(Debug)]
pub struct Clients {
    shared: Arc<Shared>,
    runtime: Handle,
    stop: Arc<Notify>,
    thread: Option<JoinHandle<()>>,
}

/// A request on a connection of its own.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// Whose, counted from 0.
    pub client: u32,
    /// Before connecting.
    pub began: Instant,
    /// When there was an answer, or none to be had.
    pub ended: Instant,
    /// Who answered, as an index into [`SERVERS`].
    pub answer: Result<usize, Failure>,
}

/// A long-lived connection.
#[derive(Clone, Copy, Debug, Default)]
pub struct Held {
    /// Who answers on it, as an index into [`SERVERS`]; nobody has yet.
    pub server: Option<usize>,
    /// Why it is no more.
    pub broken: Option<Failure>,
    /// Answers so far.
    pub answers: u64,
}

impl Clients {
    /// Starts asking.
    ///
    /// # Errors
    /// If the runtime cannot be made.
    pub fn start(host: &Client, target: SocketAddr) -> Result<Self> {
        let shared =
            Arc::new(Shared { target, crowd: host.crowd(), notes: Mutex::default(), held: Mutex::default() });
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let (handle, stop) = (runtime.handle().clone(), Arc::new(Notify::new()));
        let work = {
            let (shared, stop, host) = (Arc::clone(&shared), Arc::clone(&stop), host.namespace().clone());
            move || {
                host.run(|| {
                    runtime.block_on(async {
                        tokio::select! {
                            () = shared.ask_on() => {}
                            () = stop.notified() => {}
                        }
                    });
                });
            }
        };
        Ok(Self { shared, runtime: handle, stop, thread: Some(thread::spawn(work)) })
    }

    /// Opens so many more long-lived connections, and returns when each has been answered.
    ///
    /// # Errors
    /// If one of them was not.
    pub fn hold(&self, count: usize) -> Result<()> {
        let first = {
            let mut held = self.shared.held();
            let first = held.len();
            held.resize(first + count, Held::default());
            first
        };
        for number in first..first + count {
            self.runtime.spawn(Arc::clone(&self.shared).hold(number));
        }
        while self.held()[first..].iter().any(|held| held.server.is_none() && held.broken.is_none()) {
            thread::sleep(Duration::from_millis(5));
        }
        let failed = self.held()[first..].iter().filter_map(|held| held.broken).next();
        ensure!(failed.is_none(), "a long-lived connection could not be opened: {failed:?}");
        Ok(())
    }

    /// Requests that began after a moment and have ended.
    #[must_use]
    pub fn begun_after(&self, moment: Instant) -> Vec<Request> {
        let mut requests = self.ended_after(moment);
        requests.retain(|request| request.began > moment);
        requests
    }

    /// Requests that ended after a moment, in the order of their ends.
    #[must_use]
    pub fn ended_after(&self, moment: Instant) -> Vec<Request> {
        self.look(moment, <[Request]>::to_vec)
    }

    /// The same without a copy. Nothing is noted as long as `at` looks.
    pub fn look<T>(&self, moment: Instant, at: impl FnOnce(&[Request]) -> T) -> T {
        let notes = self.shared.notes();
        let first = notes.requests.partition_point(|request| request.ended <= moment);
        at(&notes.requests[first..])
    }

    /// How many requests have ended, and how many of them without an answer.
    #[must_use]
    pub fn totals(&self) -> (u64, u64) {
        let notes = self.shared.notes();
        (notes.requests.len() as u64, notes.failed)
    }

    /// The long-lived connections.
    #[must_use]
    pub fn held(&self) -> Vec<Held> {
        self.shared.held().clone()
    }

    /// The number of the client with an address.
    #[must_use]
    pub fn number_of(&self, address: Ipv4Addr) -> Option<u32> {
        address.to_bits().checked_sub(self.shared.crowd.v4.network().to_bits() + 1)
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.stop.notify_one();
        if let Some(thread) = self.thread.take() {
            // A panic there has been shown already.
            let _ = thread.join();
        }
    }
}

/// Failures by their kind, in words: ` (118 refused, 3 reset)`, or nothing without any.
#[must_use]
pub fn kinds_of_failure(requests: &[Request]) -> String {
    let mut kinds = BTreeMap::<Failure, u64>::new();
    for failure in requests.iter().filter_map(|request| request.answer.err()) {
        *kinds.entry(failure).or_default() += 1;
    }
    let words: Vec<_> = kinds.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    if words.is_empty() { String::new() } else { format!(" ({})", words.join(", ")) }
}

#[derive(Debug)]
struct Shared {
    target: SocketAddr,
    crowd: Crowd,
    notes: Mutex<Notes>,
    held: Mutex<Vec<Held>>,
}

#[derive(Debug, Default)]
struct Notes {
    /// In the order of their ends.
    requests: Vec<Request>,
    failed: u64,
}

impl Shared {
    /// Client after client, and from the first again.
    async fn ask_on(self: &Arc<Self>) {
        const TICK: Duration = Duration::from_millis(4);
        /// What a late tick may make up for; more would be a burst that nobody asked for.
        const MOST_AT_ONCE: f64 = 0.04 * RATE;
        let room = Arc::new(Semaphore::new(AT_A_TIME));
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut last, mut due) = (Instant::now(), 0.0);
        let mut client = 0;
        loop {
            ticks.tick().await;
            let now = Instant::now();
            due = (due + RATE * (now - last).as_secs_f64()).min(MOST_AT_ONCE);
            last = now;
            while due >= 1.0 {
                let Ok(permit) = Arc::clone(&room).try_acquire_owned() else {
                    break;
                };
                due -= 1.0;
                let shared = Arc::clone(self);
                tokio::spawn(async move {
                    shared.ask(client).await;
                    drop(permit);
                });
                client = (client + 1) % CLIENTS;
            }
        }
    }

    async fn ask(&self, client: u32) {
        let from = self.crowd.member(client, Family::V4);
        let began = Instant::now();
        let answer = async {
            let name = Connection::open(from, self.target).await?.ask(false).await?;
            index_of(&name)
        };
        let answer = answer.await;
        // Under the lock, so that the notes are in the order of their ends.
        let mut notes = self.notes();
        notes.failed += u64::from(answer.is_err());
        notes.requests.push(Request { client, began, ended: Instant::now(), answer });
    }

    async fn hold(self: Arc<Self>, number: usize) {
        let Err(failure) = self.ask_again_and_again(number).await;
        self.held()[number].broken = Some(failure);
    }

    async fn ask_again_and_again(&self, number: usize) -> Result<std::convert::Infallible, Failure> {
        let from = self.crowd.member(FIRST_HOLDER + number as u32, Family::V4);
        let mut connection = Connection::open(from, self.target).await?;
        let first = index_of(&connection.ask(true).await?)?;
        self.held()[number] = Held { server: Some(first), broken: None, answers: 1 };
        loop {
            sleep(HELD_INTERVAL).await;
            if index_of(&connection.ask(true).await?)? != first {
                return Err(Failure::Moved);
            }
            self.held()[number].answers += 1;
        }
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn held(&self) -> MutexGuard<'_, Vec<Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn index_of(server: &str) -> Result<usize, Failure> {
    SERVERS.iter().position(|name| *name == server).ok_or(Failure::Other)
}
