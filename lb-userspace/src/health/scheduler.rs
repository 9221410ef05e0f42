//! The clock and the sockets for a [`Schedule`].

use std::{
    collections::HashMap,
    future::{self, Future},
    hash::{BuildHasher, RandomState},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use tokio::{
    sync::{Notify, mpsc},
    task::{self, AbortHandle, JoinError, JoinSet},
    time::sleep_until,
};

use super::{
    advice::Advice,
    check::{Target, TargetId},
    judge::{Health, Transition},
    probe::{Failure, Miss, ProbeResult, To, Trouble, Way, probe_to},
    schedule::{Counters, Job, Report, Schedule, Ticket, Told},
    vip::{Along, Roads},
};

/// A check that starts later than this after its time is counted as late.
const LATE: Duration = Duration::from_millis(100);

/// A target changed its state, or what it says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthEvent {
    /// Which target.
    pub id: TargetId,
    /// The state now.
    pub state: Health,
    /// The state that the last event told (unknown before the first).
    pub previous: Health,
    /// What it says of itself: [`Advice::NONE`] of all but agents.
    pub advice: Advice,
    /// What the deciding check met; `None` if it passed.
    pub reason: Option<Failure>,
    /// When the deciding result came.
    pub at: SystemTime,
    /// Results in a row, of the kind that decided.
    pub consecutive: u32,
    /// How long the last check took.
    pub duration: Duration,
}

/// How the scheduler keeps up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Checks under way.
    pub in_flight: usize,
    /// At most so many are under way at once: half of the open files that this process may have.
    pub limit: usize,
    /// Checks started so far.
    pub started: u64,
    /// Those of them that started more than 100 ms after their time.
    pub late: u64,
}

/// Checks targets for as long as it lives.
///
/// It runs as one task of the runtime that it is made in, with a short-lived task for each check under way; a
/// current-thread runtime will do. Dropping it ends all checks.
#[derive(Debug)]
pub struct Scheduler {
    shared: Arc<Shared>,
    driver: AbortHandle,
    along: Option<Arc<Along>>,
}

#[derive(Debug)]
struct Shared {
    inner: Mutex<Inner>,
    changed: Notify,
}

#[derive(Debug)]
struct Inner {
    schedule: Schedule,
    load: Load,
}

impl Scheduler {
    /// Starts without targets. Changes of state go to `events`; while nobody receives, a target's changes are merged
    /// into one, from the state told last to the state it has, or none if they are the same.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn new(events: mpsc::Sender<HealthEvent>) -> Self {
        Self::with(events, |job| run(job, None))
    }

    /// The same, for targets, too, whose probes go along the data path ([`Target::via`]).
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn along(events: mpsc::Sender<HealthEvent>, roads: Arc<dyn Roads>) -> Self {
        let along = Arc::new(Along::new(roads));
        let shared = Arc::clone(&along);
        let mut scheduler = Self::with(events, move |job| run(job, Some(Arc::clone(&shared))));
        scheduler.along = Some(along);
        scheduler
    }

    /// With something else than a probe.
    fn with<P, F>(events: mpsc::Sender<HealthEvent>, probe: P) -> Self
    where
        P: Fn(Job) -> F + Send + 'static,
        F: Future<Output = ProbeResult> + Send + 'static,
    {
        let inner = Inner {
            schedule: Schedule::new(RandomState::new().hash_one(0)),
            load: Load { limit: limit_in_flight(), ..Load::default() },
        };
        let shared = Arc::new(Shared { inner: Mutex::new(inner), changed: Notify::new() });
        let driver = tokio::spawn(drive(Arc::clone(&shared), events, probe)).abort_handle();
        Self { shared, driver, along: None }
    }

    /// Converges on these targets: the same list twice changes nothing.
    ///
    /// A target that stays keeps its state and its rhythm; one whose check or way changed keeps its state and is checked at
    /// once; one whose address or mark changed starts as unknown. New ones are checked at once, many of them spread
    /// over a second (over their interval, if that is shorter). Of targets with the same id the last counts.
    pub fn update(&self, targets: Vec<Target>) {
        if let Some(along) = &self.along
            && targets.iter().all(|target| target.via.is_none())
        {
            along.close();
        }
        self.shared.lock().schedule.update(targets, now());
        self.shared.changed.notify_one();
    }

    /// What is known of that target.
    pub fn report(&self, id: TargetId) -> Option<Report> {
        self.shared.lock().schedule.report(id)
    }

    /// Looks at a target's counts and at its last check, without making a [`Report`].
    pub fn look<R>(&self, id: TargetId, f: impl FnOnce(&Counters, Option<&ProbeResult>) -> R) -> Option<R> {
        self.shared.lock().schedule.look(id, f)
    }

    /// What is known of every target, in no order.
    pub fn reports(&self) -> Vec<(TargetId, Report)> {
        self.shared.lock().schedule.reports().collect()
    }

    /// How the scheduler keeps up.
    pub fn load(&self) -> Load {
        self.shared.lock().load
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing under the lock leaves the state half changed.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One check.
async fn run(job: Job, along: Option<Arc<Along>>) -> ProbeResult {
    let Job { address, check, mark, via, .. } = job;
    let way = match (via, along) {
        (None, _) => Way::Host(mark),
        (Some(via), Some(along)) => Way::Along(along, via),
        (Some(_), None) => {
            let outcome = Err(Miss::NotRun(Trouble::NoDataPath));
            return ProbeResult { outcome, duration: Duration::ZERO, words: super::Words::default() };
        }
    };
    probe_to(&To { address, way }, &check).await
}

type Probes = JoinSet<ProbeResult>;
type Done = Result<(task::Id, ProbeResult), JoinError>;
/// Kept outside of the tasks, so that a check whose task died is known and planned again.
type Tickets = HashMap<task::Id, Ticket>;

async fn drive<P, F>(shared: Arc<Shared>, events: mpsc::Sender<HealthEvent>, probe: P)
where
    P: Fn(Job) -> F,
    F: Future<Output = ProbeResult> + Send + 'static,
{
    let mut probes = Probes::new();
    let mut tickets = Tickets::new();
    loop {
        let (next, has_events) = {
            let mut inner = shared.lock();
            let now = now();
            while let Some(job) = inner.next_job(now, probes.len()) {
                let ticket = job.ticket;
                tickets.insert(probes.spawn(probe(job)).id(), ticket);
            }
            inner.load.in_flight = probes.len();
            (inner.next_wake(probes.len()), inner.schedule.has_events())
        };
        tokio::select! {
            Some(done) = probes.join_next_with_id(), if !probes.is_empty() => {
                let mut inner = shared.lock();
                inner.take_in(done, &mut tickets);
                while let Some(done) = probes.try_join_next_with_id() {
                    inner.take_in(done, &mut tickets);
                }
            }
            permit = events.reserve(), if has_events => {
                let Ok(permit) = permit else { return };
                if let Some(event) = shared.lock().schedule.next_event() {
                    permit.send(event_of(event));
                }
            }
            () = shared.changed.notified() => {}
            () = until(next) => {}
        }
    }
}

/// The runtime's time, which tests can stop.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

async fn until(next: Option<Instant>) {
    match next {
        Some(next) => sleep_until(next.into()).await,
        None => future::pending().await,
    }
}

impl Inner {
    fn next_job(&mut self, now: Instant, in_flight: usize) -> Option<Job> {
        if in_flight >= self.load.limit {
            return None;
        }
        let job = self.schedule.start_due(now)?;
        self.load.started += 1;
        self.load.late += u64::from(now.saturating_duration_since(job.ticket.due()) > LATE);
        Some(job)
    }

    /// `None` while the limit is reached: the end of a check wakes the driver then.
    fn next_wake(&mut self, in_flight: usize) -> Option<Instant> {
        if in_flight >= self.load.limit { None } else { self.schedule.next_due() }
    }

    fn take_in(&mut self, done: Done, tickets: &mut Tickets) {
        let now = now();
        let id = match &done {
            Ok((id, _)) => *id,
            Err(crashed) => crashed.id(),
        };
        let Some(ticket) = tickets.remove(&id) else {
            return;
        };
        match done {
            Ok((_, result)) => self.schedule.finish(ticket, result, now),
            Err(crashed) => {
                tracing::error!(error = %crashed, "a health probe crashed");
                self.schedule.abandon(ticket, now);
            }
        }
    }
}

fn event_of(told: Told) -> HealthEvent {
    let Told { id, transition: Transition { previous, state, reason, consecutive, at }, advice, duration } =
        told;
    let at = SystemTime::now() - now().saturating_duration_since(at);
    HealthEvent { id, state, previous, advice, reason, at, consecutive, duration }
}

/// Half of the open files that this process may have: the other half is for everything else that it does.
fn limit_in_flight() -> usize {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a `rlimit` to write to.
    let result = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    let files = if result == 0 { limit.rlim_cur } else { 1024 };
    usize::try_from(files / 2).unwrap_or(usize::MAX).max(1)
}

#[cfg(test)]
mod tests;
