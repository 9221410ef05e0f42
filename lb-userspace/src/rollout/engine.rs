//! The engine: what a rollout does next. A pure function of what is written down, what is seen, and the time.
//!
//! ```text
//! preparing -> holding (a step) -> [gate] -> holding (the next) ... -> soaking -> promoted
//!     |             |                |                                    |
//!   failed          +----------------+--------- rolled back -------------+
//! ```
//!
//! What ends while nobody is let in (a step of 0 % without guests) has failed as well: there is nothing to take back.
//!
//! The agent calls [`advance`] every now and then. What comes back is journaled before anything is done about it, and says
//! the canary's share ([`Rollout::share`]); the agent brings the kernel there. An agent that dies in between finds the
//! journal and does the rest. Nothing else is remembered: an agent that starts anew only has to gather evidence again.
//!
//! Who wins where several speak at once: an operator's abort, then analysis, then a pause, then a promotion.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::plan::{Gate, OnGateTimeout, OnNoData, Plan, Step};
use crate::config::PoolName;

/// A rollout, as the journal has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rollout {
    /// The pool that is rolled out.
    pub to: PoolName,
    /// How, as it was when the rollout began.
    pub plan: Plan,
    /// Where it stands.
    pub phase: Phase,
    /// The step of the plan; of meaning while it holds or waits at a gate.
    pub step: usize,
    /// When the rollout began.
    pub began: Timestamp,
    /// When the phase, or the step, began; later by the time that it was paused.
    pub since: Timestamp,
    /// Since when it is paused.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub paused: Option<Timestamp>,
    /// The gate was approved by an operator, perhaps before it was reached.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub approved: bool,
    /// An operator has forced it: nobody else takes it back.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub forced: bool,
    /// An operator waits for the end of the soak no longer.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub hurried: bool,
    /// The phase that it was in when it ended.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ended_in: Option<Phase>,
    /// Why it is where it is, in a sentence.
    pub reason: String,
}

/// Where a rollout stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(rename = "RolloutPhase")]
pub enum Phase {
    /// The pool is not ready to take anybody.
    Preparing,
    /// The step's share is set; time passes, and evidence grows.
    Holding,
    /// The step has passed; somebody or something has to agree.
    Gate,
    /// Everybody is there, and the way back is still one store.
    Soaking,
    /// It is the stable pool.
    Promoted,
    /// It was rolled back.
    RolledBack,
    /// It ended before anybody was let in.
    Failed,
}

impl Phase {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Preparing,
        Self::Holding,
        Self::Gate,
        Self::Soaking,
        Self::Promoted,
        Self::RolledBack,
        Self::Failed,
    ];

    /// Whether there is nothing more to come.
    #[must_use]
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Promoted | Self::RolledBack | Self::Failed)
    }

    /// As people and metrics name it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Preparing => "preparing",
            Self::Holding => "holding",
            Self::Gate => "gate",
            Self::Soaking => "soaking",
            Self::Promoted => "promoted",
            Self::RolledBack => "rolled-back",
            Self::Failed => "failed",
        }
    }
}

/// What analysis says of the canary.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// It is not worse, as far as enough clients can tell.
    Fine,
    /// It is worse; why.
    Worse(String),
    /// There is something, and not enough to be sure; what.
    Unsure(String),
    /// Too few clients, or somebody does not answer.
    NoData {
        /// What is missing.
        why: String,
        /// What that means when the step's time is over.
        then: OnNoData,
    },
}

impl Verdict {
    /// The gravest of several.
    #[must_use]
    pub fn gravest(verdicts: impl IntoIterator<Item = Self>) -> Self {
        // Of equals the first one: it is the one that is told.
        verdicts
            .into_iter()
            .fold(Self::Fine, |gravest, next| if next.gravity() > gravest.gravity() { next } else { gravest })
    }

    const fn gravity(&self) -> u8 {
        match self {
            Self::Fine => 0,
            Self::NoData { then: OnNoData::Pass, .. } => 1,
            Self::NoData { then: OnNoData::Hold, .. } => 2,
            Self::NoData { then: OnNoData::Fail, .. } => 3,
            Self::Unsure(_) => 4,
            Self::Worse(_) => 5,
        }
    }
}

/// What somebody or something at a gate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Not yet anything.
    None,
    /// Go on.
    Yes,
    /// Go back; why.
    No(String),
}

/// What is seen of the world.
#[derive(Clone, Debug, PartialEq)]
pub struct Facts {
    /// How long this agent has watched the phase, or the step: not while another one was, or none.
    pub watched: Duration,
    /// What keeps the pool from taking clients; `None`: nothing.
    pub not_ready: Option<String>,
    /// Somebody in the stable pool takes new flows.
    pub stable_takes: bool,
    /// The kernel sends no new flow to the canary although the rollout says so: somebody has rolled back.
    pub taken_back: Option<String>,
    /// Every flow is in the canary by its hash: it can become the stable pool.
    pub settled: bool,
    /// What analysis says.
    pub verdict: Verdict,
    /// What was said at the gate.
    pub answer: Answer,
}

impl Rollout {
    /// One that is about to begin.
    #[must_use]
    pub fn begin(to: PoolName, plan: Plan, now: Timestamp) -> Self {
        Self {
            to,
            plan,
            phase: Phase::Preparing,
            step: 0,
            began: now,
            since: now,
            paused: None,
            approved: false,
            forced: false,
            hurried: false,
            ended_in: None,
            reason: "it begins when the pool is ready".to_owned(),
        }
    }

    /// The canary's share in percent that it asks for now.
    #[must_use]
    pub fn share(&self) -> f64 {
        match self.phase {
            Phase::Preparing | Phase::RolledBack | Phase::Failed => 0.0,
            Phase::Holding | Phase::Gate => self.plan.steps.get(self.step).map_or(0.0, |step| step.weight),
            Phase::Soaking | Phase::Promoted => 100.0,
        }
    }

    /// The share that it begins with.
    #[must_use]
    pub fn first_share(&self) -> f64 {
        self.plan.steps.first().map_or(100.0, |step| step.weight)
    }

    /// The share after this step's, while it holds one.
    #[must_use]
    pub fn next_share(&self) -> Option<f64> {
        let next = self.plan.steps.get(self.step + 1).map_or(100.0, |step| step.weight);
        (self.phase == Phase::Holding).then_some(next)
    }

    /// Whether anybody is to enter the canary: at a share of 0 % its guests are.
    #[must_use]
    pub fn is_open(&self) -> bool {
        match self.phase {
            Phase::Holding | Phase::Gate => self.share() > 0.0 || self.plan.guests,
            Phase::Soaking => true,
            Phase::Preparing | Phase::Promoted | Phase::RolledBack | Phase::Failed => false,
        }
    }

    /// How long the phase, or the step, has lasted; pauses do not count.
    #[must_use]
    pub fn elapsed(&self, now: Timestamp) -> Duration {
        let until = self.paused.unwrap_or(now);
        // A clock that was set back makes it wait, not hurry.
        until.duration_since(self.since).max(SignedDuration::ZERO).unsigned_abs()
    }

    fn current(&self) -> Option<&Step> {
        self.plan.steps.get(self.step)
    }

    fn to_phase(&self, phase: Phase, now: Timestamp, reason: impl Into<String>) -> Self {
        let ended_in = phase.is_over().then_some(self.phase);
        Self { phase, since: now, paused: None, ended_in, reason: reason.into(), ..self.clone() }
    }

    /// To a step, or to the end of them.
    fn to_step(&self, step: usize, now: Timestamp, reason: impl Into<String>) -> Self {
        if step < self.plan.steps.len() {
            Self { step, ..self.to_phase(Phase::Holding, now, reason) }
        } else {
            self.to_phase(Phase::Soaking, now, reason)
        }
    }

    /// To the step after this one. An approval is for this one's gate, or else for one that is to come.
    fn next_step(&self, now: Timestamp, reason: impl Into<String>) -> Self {
        let passed = self.current().is_some_and(|step| step.gate.is_some());
        Self { approved: self.approved && !passed, ..self.to_step(self.step + 1, now, reason) }
    }

    /// Waits for nothing more at 100 %.
    fn hurried(&self, reason: &str) -> Self {
        Self { hurried: true, paused: None, reason: reason.to_owned(), ..self.clone() }
    }

    /// How long 100 % is watched.
    #[must_use]
    pub fn soak(&self) -> Duration {
        if self.hurried { Duration::ZERO } else { self.plan.soak }
    }

    /// The part of the canary's clients that fare badly at which the kernel program takes it back.
    #[must_use]
    pub fn tripwire(&self) -> Option<f64> {
        self.plan.tripwire.filter(|_| !self.forced)
    }

    /// Whether analysis has a say.
    const fn is_enforced(&self) -> bool {
        self.plan.analysis.enforce && !self.forced
    }

    /// Back to nothing.
    fn back(&self, now: Timestamp, reason: impl Into<String>) -> Self {
        self.to_phase(if self.is_open() { Phase::RolledBack } else { Phase::Failed }, now, reason)
    }
}

/// What the rollout becomes now; `None`: it stays as it is.
#[must_use]
pub fn advance(rollout: &Rollout, facts: &Facts, now: Timestamp) -> Option<Rollout> {
    if rollout.phase.is_over() {
        return None;
    }
    if let Some(why) = &facts.taken_back {
        return Some(rollout.back(now, why.clone()));
    }
    if rollout.phase == Phase::Preparing {
        return prepare(rollout, facts, now);
    }
    if let Verdict::Worse(why) = &facts.verdict
        && rollout.is_enforced()
    {
        return Some(rollout.back(now, why.clone()));
    }
    // A canary that nobody serves any more, unless there is nobody else either.
    if let Some(why) = &facts.not_ready
        && facts.stable_takes
        && !rollout.forced
    {
        return Some(rollout.back(now, format!("the pool cannot serve any more: {why}")));
    }
    if rollout.paused.is_some() {
        return None;
    }
    match rollout.phase {
        Phase::Holding => hold(rollout, facts, now),
        Phase::Gate => gate(rollout, facts, now),
        Phase::Soaking => soak(rollout, facts, now),
        _ => None,
    }
}

/// How long the phase, or the step, has lasted under this agent's eyes: what nobody has seen is held against nobody.
fn watched(rollout: &Rollout, facts: &Facts, now: Timestamp) -> Duration {
    rollout.elapsed(now).min(facts.watched)
}

fn prepare(rollout: &Rollout, facts: &Facts, now: Timestamp) -> Option<Rollout> {
    if rollout.paused.is_some() {
        return None;
    }
    match &facts.not_ready {
        None => Some(rollout.to_step(0, now, "the pool is ready")),
        Some(why) if watched(rollout, facts, now) >= rollout.plan.ready_within => {
            Some(rollout.to_phase(Phase::Failed, now, format!("the pool did not become ready: {why}")))
        }
        Some(_) => None,
    }
}

fn hold(rollout: &Rollout, facts: &Facts, now: Timestamp) -> Option<Rollout> {
    let step = rollout.current()?;
    if rollout.elapsed(now) < step.hold {
        return None;
    }
    // In shadow nothing that is found holds anything up.
    if step.analyze && rollout.is_enforced() {
        let watched = watched(rollout, facts, now);
        let patience = step.hold + rollout.plan.analysis.patience;
        match &facts.verdict {
            Verdict::Fine | Verdict::Worse(_) => {}
            Verdict::Unsure(why) => return unsure(rollout, why, watched >= patience, now),
            Verdict::NoData { why, then } => match then {
                OnNoData::Hold => return None,
                OnNoData::Fail if watched < patience => return None,
                OnNoData::Fail => return Some(rollout.back(now, format!("no data: {why}"))),
                OnNoData::Pass if watched < step.hold => return None,
                OnNoData::Pass => {}
            },
        }
    }
    let Some(gate) = &step.gate else {
        return Some(rollout.next_step(now, format!("{} % passed", step.weight)));
    };
    let who = match gate.what {
        Gate::Approve => "it waits for `lbctl rollout approve`",
        Gate::Command(_) | Gate::Http(_) | Gate::File(_) => "its gate is asked",
    };
    Some(rollout.to_phase(Phase::Gate, now, format!("the step at {} % is over; {who}", step.weight)))
}

/// Waits for more, until patience `is_over`.
fn unsure(rollout: &Rollout, why: &str, is_over: bool, now: Timestamp) -> Option<Rollout> {
    is_over.then(|| rollout.back(now, format!("still not sure that it is good: {why}")))
}

fn soak(rollout: &Rollout, facts: &Facts, now: Timestamp) -> Option<Rollout> {
    let soak = rollout.soak();
    if rollout.elapsed(now) < soak {
        return None;
    }
    // Where 100 % is not to be watched, nobody waits to become sure of it.
    if let Verdict::Unsure(why) = &facts.verdict
        && rollout.is_enforced()
        && !soak.is_zero()
    {
        let patience = soak + rollout.plan.analysis.patience;
        return unsure(rollout, why, watched(rollout, facts, now) >= patience, now);
    }
    facts.settled.then(|| rollout.to_phase(Phase::Promoted, now, "everybody is there, and stays"))
}

fn gate(rollout: &Rollout, facts: &Facts, now: Timestamp) -> Option<Rollout> {
    let Some(gate) = rollout.current().and_then(|step| step.gate.as_ref()) else {
        return Some(rollout.next_step(now, "there is no gate"));
    };
    if rollout.approved {
        return Some(rollout.next_step(now, "approved"));
    }
    match &facts.answer {
        // An approval is an operator's, whatever else may be asked.
        Answer::Yes if gate.what != Gate::Approve => Some(rollout.next_step(now, "the gate said yes")),
        Answer::No(why) => Some(rollout.back(now, format!("the gate said no: {why}"))),
        _ if gate.timeout.is_some_and(|timeout| watched(rollout, facts, now) >= timeout) => {
            Some(match gate.on_timeout {
                OnGateTimeout::Fail => rollout.back(now, "nobody answered at the gate in time"),
                OnGateTimeout::Pass => rollout.next_step(now, "nobody objected at the gate in time"),
            })
        }
        _ => None,
    }
}

/// What an operator can say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Stay at this share.
    Pause,
    /// Go on.
    Resume,
    /// Do not wait for the end of this step.
    Promote,
    /// To 100 % at once; there, do not wait for the end of the soak.
    PromoteFull,
    /// The same, whatever anybody thinks of it: from then on only an operator takes it back.
    Force,
    /// Back to nothing.
    Abort,
    /// Once more, from the first step.
    Retry,
    /// Open the gate, also before it is reached.
    Approve,
}

impl Order {
    /// Every one there is.
    pub const ALL: &[Self] = &[
        Self::Pause,
        Self::Resume,
        Self::Promote,
        Self::PromoteFull,
        Self::Force,
        Self::Abort,
        Self::Retry,
        Self::Approve,
    ];

    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Promote => "promote",
            Self::PromoteFull => "promote-full",
            Self::Force => "promote-force",
            Self::Abort => "abort",
            Self::Retry => "retry",
            Self::Approve => "approve",
        }
    }
}

/// What the rollout becomes by an order.
///
/// # Errors
///
/// Why the order makes no sense now.
pub fn obey(rollout: &Rollout, order: Order, now: Timestamp) -> Result<Rollout, String> {
    let phase = rollout.phase;
    if phase.is_over() != (order == Order::Retry) {
        return Err(match order {
            Order::Retry => format!("it is under way ({})", phase.name()),
            _ => format!("it is over ({})", phase.name()),
        });
    }
    match order {
        Order::Abort => Ok(rollout.back(now, "aborted")),
        Order::Pause if rollout.paused.is_some() => Err("it is paused already".to_owned()),
        Order::Pause => Ok(Rollout { paused: Some(now), ..rollout.clone() }),
        Order::Resume => {
            let paused = rollout.paused.ok_or("it is not paused")?;
            let shift = now.duration_since(paused).max(SignedDuration::ZERO);
            let since = rollout.since.checked_add(shift).unwrap_or(now);
            Ok(Rollout { paused: None, since, ..rollout.clone() })
        }
        Order::Approve
            if phase == Phase::Soaking
                || rollout.plan.steps.iter().skip(rollout.step).all(|step| step.gate.is_none()) =>
        {
            Err("no gate is left".to_owned())
        }
        Order::Approve => Ok(Rollout { approved: true, ..rollout.clone() }),
        Order::Promote | Order::PromoteFull if rollout.paused.is_some() => {
            Err("it is paused; resume it first".to_owned())
        }
        Order::Promote if phase == Phase::Preparing => Err("the pool is not ready yet".to_owned()),
        Order::Promote | Order::PromoteFull if phase == Phase::Soaking => {
            Ok(rollout.hurried("the soak was cut short"))
        }
        Order::Promote => Ok(rollout.next_step(now, "promoted by hand")),
        Order::PromoteFull => Ok(rollout.to_phase(Phase::Soaking, now, "promoted to the end by hand")),
        Order::Force => {
            let reason = "forced to the end by hand";
            let next = match phase {
                Phase::Soaking => rollout.hurried(reason),
                _ => rollout.to_phase(Phase::Soaking, now, reason),
            };
            Ok(Rollout { forced: true, ..next })
        }
        Order::Retry if phase == Phase::Promoted => Err("it was promoted".to_owned()),
        Order::Retry => Ok(Rollout::begin(rollout.to.clone(), rollout.plan.clone(), now)),
    }
}

#[cfg(test)]
mod tests;
