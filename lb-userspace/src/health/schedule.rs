//! When which target is checked, and what is known of it. No clock and no sockets: time is an argument.
//!
//! A check is due one interval after the one before was, less a jitter: shortened only, so that the promise of
//! [`Timing::detection_bound`] stands with something in hand for a late timer. Which interval follows from what the
//! results so far amount to. What is late is done once, not caught up.
//!
//! [`Timing::detection_bound`]: super::Timing::detection_bound

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, HashSet, VecDeque},
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::{
    advice::{Advice, Words},
    check::{Check, Target, TargetId},
    judge::{Judge, Transition},
    probe::{FailureKind, Miss, ProbeResult, Trouble},
    vip::Via,
};

/// First checks are spread by this much for each target that is new, so that one target is checked at once …
const SPREAD_PER_TARGET: Duration = Duration::from_micros(500);
/// … and many of them within this time.
const MAX_SPREAD: Duration = Duration::from_secs(1);

/// A check may start this much before its time, together with one that is due: a wake-up is dearer than a check. It
/// takes no more than half of what jitter holds back for late timers.
const MAX_EARLY: Duration = Duration::from_millis(5);

/// The state of all targets.
#[derive(Debug)]
pub(super) struct Schedule {
    entries: HashMap<TargetId, Entry>,
    /// May hold checks that are obsolete: those whose epoch is not the entry's.
    due: BinaryHeap<Reverse<Due>>,
    /// Targets whose state differs from what was told.
    untold: VecDeque<TargetId>,
    last_epoch: u64,
    jitter: Jitter,
}

#[derive(Debug)]
struct Entry {
    target: Target,
    /// Changes with what is checked: results and plans from before are void.
    epoch: u64,
    first: bool,
    judge: Judge,
    advice: Advice,
    told: (super::Health, Advice),
    transition: Option<Transition>,
    last: Option<ProbeResult>,
    counters: Counters,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Due {
    at: Instant,
    id: TargetId,
    epoch: u64,
}

/// A check to run now.
#[derive(Debug)]
pub(super) struct Job {
    pub ticket: Ticket,
    pub address: SocketAddr,
    pub check: Check,
    pub mark: Option<u32>,
    pub via: Option<Via>,
}

/// Says which check a result belongs to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ticket(Due);

impl Ticket {
    /// When the check should have started.
    pub(super) fn due(&self) -> Instant {
        self.0.at
    }
}

/// What there is to tell of a target.
#[derive(Debug)]
pub(super) struct Told {
    pub id: TargetId,
    pub transition: Transition,
    pub advice: Advice,
    /// How long the last check took.
    pub duration: Duration,
}

/// What is known of a target.
#[derive(Clone, Debug)]
pub struct Report {
    /// Its state.
    pub health: super::Health,
    /// When it entered it; `None` as long as it is unknown.
    pub since: Option<Instant>,
    /// How many of the last results were of one kind.
    pub streak: u32,
    /// What it says of itself.
    pub advice: Advice,
    /// The last check that ended.
    pub last: Option<ProbeResult>,
    /// Counts since the target was added.
    pub counters: Counters,
}

/// Counts of one target since it was added.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Checks that ended, failed ones included.
    pub checks: u64,
    /// Checks that this host could not run. They are in no other count.
    pub not_run: u64,
    /// Transitions to up.
    pub to_up: u64,
    /// Transitions to down.
    pub to_down: u64,
    pub(crate) failures: [u32; FailureKind::ALL.len()],
}

impl Counters {
    /// Checks that failed that way.
    pub fn failures(&self, kind: FailureKind) -> u64 {
        self.failures[kind as usize].into()
    }
}

impl Schedule {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            entries: HashMap::new(),
            due: BinaryHeap::new(),
            untold: VecDeque::new(),
            last_epoch: 0,
            jitter: Jitter(seed),
        }
    }

    /// Converges on these targets. Of targets with the same id the last counts.
    ///
    /// A target that stays keeps its state and its plan. One whose check or way changed keeps its state and is checked soon.
    /// One whose address or mark changed is another target: it starts as unknown.
    pub(super) fn update(&mut self, targets: Vec<Target>, now: Instant) {
        let wanted: HashSet<TargetId> = targets.iter().map(|target| target.id).collect();
        self.entries.retain(|id, _| wanted.contains(id));

        let changed: Vec<Target> = targets
            .into_iter()
            .filter(|target| self.entries.get(&target.id).is_none_or(|e| e.target != *target))
            .collect();
        let spread = SPREAD_PER_TARGET
            .saturating_mul(u32::try_from(changed.len()).unwrap_or(u32::MAX))
            .min(MAX_SPREAD);
        for target in changed {
            let spread = spread.min(target.check.timing.interval());
            let at = now + self.jitter.below(spread);
            self.plan_first(target, at);
        }
        self.forget_obsolete();
    }

    fn plan_first(&mut self, target: Target, at: Instant) {
        self.last_epoch += 1;
        let (id, epoch) = (target.id, self.last_epoch);
        let known = self.entries.remove(&id).filter(|e| e.target.is_still(&target));
        let entry = match known {
            Some(known) => Entry { target, epoch, first: true, ..known },
            None => Entry {
                target,
                epoch,
                first: true,
                judge: Judge::new(),
                advice: Advice::NONE,
                told: (super::Health::Unknown, Advice::NONE),
                transition: None,
                last: None,
                counters: Counters::default(),
            },
        };
        self.entries.insert(id, entry);
        self.due.push(Reverse(Due { at, id, epoch }));
    }

    /// Updates faster than intervals must not pile up plans.
    fn forget_obsolete(&mut self) {
        if self.due.len() > 2 * self.entries.len() + 64 {
            let Self { due, entries, .. } = self;
            due.retain(|Reverse(due)| is_current(entries, due));
        }
    }

    /// When the next check is due.
    pub(super) fn next_due(&mut self) -> Option<Instant> {
        self.drop_obsolete_head();
        self.due.peek().map(|Reverse(due)| due.at)
    }

    /// A check that is due now or so soon that it may as well start now. It stays under way until [`Self::finish`].
    pub(super) fn start_due(&mut self, now: Instant) -> Option<Job> {
        self.drop_obsolete_head();
        let Reverse(due) = *self.due.peek()?;
        let target = &self.entries.get(&due.id)?.target;
        let early = MAX_EARLY.min(target.check.timing.shortest() / 128);
        if due.at > now + early {
            return None;
        }
        self.due.pop();
        Some(Job {
            ticket: Ticket(due),
            address: target.address,
            check: target.check.clone(),
            mark: target.mark,
            via: target.via.clone(),
        })
    }

    fn drop_obsolete_head(&mut self) {
        while let Some(Reverse(head)) = self.due.peek()
            && !is_current(&self.entries, head)
        {
            self.due.pop();
        }
    }

    /// Takes the result of a check in and plans the next one. Results of targets that are gone or changed are
    /// dropped.
    pub(super) fn finish(&mut self, ticket: Ticket, result: ProbeResult, now: Instant) {
        let Ticket(due) = ticket;
        let Some(entry) = self.entries.get_mut(&due.id).filter(|e| e.epoch == due.epoch) else {
            return;
        };
        let was_told = entry.is_told();
        entry.observe(result, now);
        if was_told && !entry.is_told() {
            self.untold.push_back(due.id);
        }

        let interval = entry.target.check.timing.interval_after(&entry.judge);
        // New targets are checked at nearly the same time. Their second check goes anywhere in the interval.
        let shortened = match std::mem::take(&mut entry.first) {
            true => self.jitter.below(interval),
            false => interval / 64 + self.jitter.below(interval * 3 / 64),
        };
        let at = (due.at + interval - shortened).max(now);
        self.due.push(Reverse(Due { at, ..due }));
    }

    /// The check neither passed nor failed: its task died.
    pub(super) fn abandon(&mut self, ticket: Ticket, now: Instant) {
        let outcome = Err(Miss::NotRun(Trouble::Crashed));
        self.finish(ticket, ProbeResult { outcome, duration: Duration::ZERO, words: Words::default() }, now);
    }

    /// If [`Self::next_event`] may have something to tell.
    pub(super) fn has_events(&self) -> bool {
        !self.untold.is_empty()
    }

    /// The next target whose state or advice is not what was told last, with the transition that brought it there. A
    /// target that came back in the meantime is not mentioned.
    pub(super) fn next_event(&mut self) -> Option<Told> {
        while let Some(id) = self.untold.pop_front() {
            let Some(entry) = self.entries.get_mut(&id).filter(|e| !e.is_told()) else {
                continue;
            };
            let Some(transition) = entry.transition.clone() else {
                continue;
            };
            let (previous, _) = std::mem::replace(&mut entry.told, (entry.judge.state(), entry.advice));
            return Some(Told {
                id,
                transition: Transition { previous, ..transition },
                advice: entry.advice,
                duration: entry.last.as_ref().map_or(Duration::ZERO, |last| last.duration),
            });
        }
        None
    }

    pub(super) fn report(&self, id: TargetId) -> Option<Report> {
        self.entries.get(&id).map(Entry::report)
    }

    pub(super) fn look<R>(
        &self,
        id: TargetId,
        f: impl FnOnce(&Counters, Option<&ProbeResult>) -> R,
    ) -> Option<R> {
        self.entries.get(&id).map(|entry| f(&entry.counters, entry.last.as_ref()))
    }

    pub(super) fn reports(&self) -> impl Iterator<Item = (TargetId, Report)> {
        self.entries.iter().map(|(&id, entry)| (id, entry.report()))
    }
}

fn is_current(entries: &HashMap<TargetId, Entry>, due: &Due) -> bool {
    entries.get(&due.id).is_some_and(|entry| entry.epoch == due.epoch)
}

impl Entry {
    fn is_told(&self) -> bool {
        self.told == (self.judge.state(), self.advice)
    }

    fn observe(&mut self, result: ProbeResult, now: Instant) {
        let verdict = match &result.outcome {
            Ok(()) => Ok(()),
            Err(Miss::Failed(failure)) => Err(failure),
            Err(Miss::NotRun(_)) => {
                self.counters.not_run += 1;
                self.last = Some(result);
                return;
            }
        };
        self.counters.checks += 1;
        if let Err(failure) = verdict {
            let count = &mut self.counters.failures[failure.kind() as usize];
            *count = count.saturating_add(1);
        }
        let thresholds = self.target.check.timing.thresholds();
        if let Some(transition) = self.judge.observe(verdict, thresholds, now) {
            match transition.state {
                super::Health::Up => self.counters.to_up += 1,
                super::Health::Down => self.counters.to_down += 1,
                super::Health::Unknown => {}
            }
            self.transition = Some(transition);
        }
        let advice = self.advice.after(result.words);
        if std::mem::replace(&mut self.advice, advice) != advice {
            let (state, consecutive) = (self.judge.state(), self.judge.streak());
            self.transition = Some(Transition { previous: state, state, reason: None, consecutive, at: now });
        }
        self.last = Some(result);
    }

    fn report(&self) -> Report {
        Report {
            health: self.judge.state(),
            since: self.judge.since(),
            streak: self.judge.streak(),
            advice: self.advice,
            last: self.last.clone(),
            counters: self.counters.clone(),
        }
    }
}

/// SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014). It only spreads load.
#[derive(Debug)]
struct Jitter(u64);

impl Jitter {
    fn below(&mut self, limit: Duration) -> Duration {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let share = u128::from(z ^ (z >> 31));
        let nanos = (limit.as_nanos().min(u128::from(u64::MAX)) * share) >> 64;
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests;
