//! How a new version takes over: the tables of a rollout.

use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;

use super::read::{Findings, Kind, List, Maybe, Node, Place, Shape, Tables, table, words};
use super::value::{Count, Endpoint, Factor, HttpUrl, Multiple, Number, Prefix, Text, Time, Truth};
use crate::api::Share;
use crate::rollout::plan::{self, Analysis, Gate, Plan, Question};

const SECOND: u64 = 1_000;
const DAY: u64 = 24 * 3_600 * SECOND;
/// Where Prometheus listens that is on the same host and was not told otherwise.
const PROMETHEUS: &str = "http://127.0.0.1:9090";

table! {
    /// How a new version of a service takes over.
    Rollout from RolloutDraft "[service.rollout]" {
        /// Which steps there are if none are given.
        preset: Preset as Preset = Preset::Canary,
        /// The canary's shares in percent, one step each; 100 comes after the last.
        shares: Option<Vec<Share>> as Maybe<List<Share>> = None,
        /// The steps in full, instead of `shares`.
        steps @ "step": Vec<RolloutStep> as Tables<RolloutStep> = Vec::new(),
        /// How long each step lasts at least.
        hold: Duration as Time<100, DAY> = Duration::from_secs(300),
        /// How long 100 % is watched before the pool becomes the stable one. Until then going back is one store.
        soak: Duration as Time<0, { 7 * DAY }> = Duration::from_secs(600),
        /// How long the pool may take until it can serve.
        ready_within: Duration as Time<SECOND, DAY> = Duration::from_secs(300),
        /// How long the kernel believes an agent that has fallen silent; then it sends no new flow to the canary.
        lease: Option<Duration> as Maybe<Time<{ 5 * SECOND }, DAY>> = None,
        /// Whether a bad canary is rolled back, only talked about, or not looked for.
        analysis: AnalysisMode as AnalysisMode = AnalysisMode::Enforce,
        /// Clients of the canary that must have been seen in a step before it can be fine.
        min_clients: u32 as Count<1, 1_000_000> = 100,
        /// How many times as often as the stable pool's clients the canary's may fare badly.
        tolerance: Factor as Factor = Factor::HALF_AGAIN,
        /// The share of the canary's clients that may fare badly, in percent, whatever the stable pool does.
        max_failures: Option<Share> as Maybe<Share> = None,
        /// The share of the canary's clients that fare badly, in percent, at which the kernel program takes the canary back
        /// by itself; 0 is never.
        tripwire: Share as Share = Share::whole(20),
        /// The share of good canaries that may be rolled back by mistake, in percent.
        false_rollbacks: Share as Share = Share::whole(1),
        /// How long a step may go on beyond its time for want of data or of certainty.
        patience: Duration as Time<0, { 7 * DAY }> = Duration::from_secs(900),
        /// What too little data means when a step's time is over.
        on_no_data: OnNoData as OnNoData = OnNoData::Hold,
        /// Networks of clients that belong to the canary as soon as it is open at all, whatever its share is: one's own people.
        canary_clients: Vec<IpNet> as List<Prefix> = Vec::new(),
        /// New connections a second that the canary takes at most, beside its share; more go to the stable pool. None of it
        /// at 100 %.
        max_new_connections: Option<u32> as Maybe<Count<1, 10_000_000>> = None,
        /// An address and a port at which the new pool alone is reached while the rollout is under way, whatever its share is. Both
        /// are free otherwise; the host answers for the address as for a VIP. Packets go as in mode `full-nat`.
        preview: Option<SocketAddr> as Maybe<Endpoint> = None,
        /// Where Prometheus is, for the metrics.
        prometheus: Option<HttpUrl> as Maybe<HttpUrl> = None,
        /// Figures that Prometheus is asked for, beside what the kernel program counts.
        metrics @ "metric": Vec<RolloutMetric> as Tables<RolloutMetric> = Vec::new(),
    }
}

table! {
    /// A figure that Prometheus is asked for, and what is a good one.
    RolloutMetric from RolloutMetricDraft "[[service.rollout.metric]]" {
        /// Its name, for people and for labels.
        name: String as Text,
        /// In PromQL; `{{service}}`, `{{pool}}` and `{{window}}` are filled in. It gives one figure.
        query: String as Text,
        /// At most this.
        max: Option<Number> as Maybe<Number> = None,
        /// At least this.
        min: Option<Number> as Maybe<Number> = None,
        /// At most so many times the stable pool's figure at the same time.
        max_ratio: Option<Number> as Maybe<Multiple> = None,
        /// At least so many times the stable pool's figure at the same time.
        min_ratio: Option<Number> as Maybe<Multiple> = None,
        /// What `{{window}}` stands for.
        window: Duration as Time<SECOND, DAY> = Duration::from_secs(60),
        /// From one question to the next; the first one comes so long after a step has begun.
        interval: Duration as Time<100, DAY> = Duration::from_secs(30),
        /// How long an answer may take.
        timeout: Duration as Time<10, { 300 * SECOND }> = Duration::from_secs(5),
        /// So many bad figures in a row make a bad canary.
        failure_limit: u32 as Count<1, 1000> = 3,
        /// What a figure that is not there means when a step's time is over; the rollout's `on_no_data` if it says nothing.
        on_no_data: Option<OnNoData> as Maybe<OnNoData> = None,
        /// Whether it is only talked about.
        shadow: bool as Truth = false,
    }
}

table! {
    /// A share, and what has to hold before the next one.
    RolloutStep from RolloutStepDraft "[[service.rollout.step]]" {
        /// The canary's share in percent.
        share: Share as Share,
        /// How long it lasts at least; the rollout's `hold` if it says nothing.
        hold: Option<Duration> as Maybe<Time<0, { 7 * DAY }>> = None,
        /// Whether analysis has to agree before the next step.
        analyze: bool as Truth = true,
        /// Who else has to agree.
        gate: GateWord as GateWord = GateWord::None,
        /// The command to run, without a shell: exit code 0 is yes, 75 not yet, anything else no.
        command: Option<Vec<String>> as Maybe<List<Text>> = None,
        /// The address to GET: 200 is yes; 202, 429 and 503 are not yet; anything else is no.
        url: Option<String> as Maybe<Text> = None,
        /// The file to wait for.
        file: Option<String> as Maybe<Text> = None,
        /// How long the answer may take; for ever if it says nothing.
        gate_timeout: Option<Duration> as Maybe<Time<SECOND, { 7 * DAY }>> = None,
        /// What no answer means.
        on_gate_timeout: OnGateTimeout as OnGateTimeout = OnGateTimeout::Fail,
    }
}

words! {
    /// Which steps there are.
    Preset, "a preset" {
        /// 1, 5, 25 and 50 percent.
        Canary = "canary",
        /// All at once, after an operator's approval.
        BlueGreen = "blue-green",
    }
}

words! {
    /// What becomes of a bad canary.
    AnalysisMode, "a kind of analysis" {
        /// It is rolled back.
        Enforce = "enforce",
        /// It is talked about.
        Shadow = "shadow",
        /// Nobody looks.
        Off = "off",
    }
}

words! {
    /// What too little data means.
    OnNoData, "an answer to too little data" {
        /// Wait.
        Hold = "hold",
        /// Go on.
        Pass = "pass",
        /// Go back, when patience is over.
        Fail = "fail",
    }
}

words! {
    /// Who is asked at a gate.
    GateWord, "a gate" {
        /// Nobody.
        None = "none",
        /// An operator: `lbctl rollout approve`.
        Approve = "approve",
        /// A command.
        Command = "command",
        /// A web server.
        Http = "http",
        /// Whoever makes a file.
        File = "file",
    }
}

words! {
    /// What no answer at a gate means.
    OnGateTimeout, "an answer to silence" {
        /// No.
        Fail = "fail",
        /// Yes.
        Pass = "pass",
    }
}

impl RolloutStep {
    /// The gate that it has; `None` also where its address, command or file is missing, which the rules refuse.
    fn question(&self) -> Option<Question> {
        let what = match self.gate {
            GateWord::None => return None,
            GateWord::Approve => Gate::Approve,
            GateWord::Command => Gate::Command(self.command.clone()?),
            GateWord::Http => Gate::Http(self.url.clone()?),
            GateWord::File => Gate::File(self.file.clone()?),
        };
        let on_timeout = match self.on_gate_timeout {
            OnGateTimeout::Fail => plan::OnGateTimeout::Fail,
            OnGateTimeout::Pass => plan::OnGateTimeout::Pass,
        };
        Some(Question { what, timeout: self.gate_timeout, on_timeout })
    }
}

impl OnNoData {
    const fn planned(self) -> plan::OnNoData {
        match self {
            Self::Hold => plan::OnNoData::Hold,
            Self::Pass => plan::OnNoData::Pass,
            Self::Fail => plan::OnNoData::Fail,
        }
    }
}

impl RolloutMetric {
    fn planned(&self, rollout: &Rollout) -> plan::Metric {
        let number = |number: Option<Number>| number.map(Number::get);
        plan::Metric {
            name: self.name.clone(),
            server: rollout.prometheus.as_ref().map_or_else(|| PROMETHEUS.to_owned(), ToString::to_string),
            query: self.query.clone(),
            window: self.window,
            interval: self.interval,
            timeout: self.timeout,
            bounds: plan::Bounds {
                max: number(self.max),
                min: number(self.min),
                max_ratio: number(self.max_ratio),
                min_ratio: number(self.min_ratio),
            },
            failure_limit: self.failure_limit,
            on_no_data: self.on_no_data.unwrap_or(rollout.on_no_data).planned(),
            shadow: self.shadow,
        }
    }
}

impl Default for Rollout {
    /// What a service has that says nothing of rollouts.
    fn default() -> Self {
        let empty = Node { at: Place::default(), shape: Shape::Table(Vec::new()) };
        let mut findings = Findings::default();
        let read = <Self as Kind>::read(&empty, &mut findings).and_then(<Self as Kind>::finish);
        // Every key has a default, or the test below fails.
        read.unwrap_or_else(|| unreachable!("a rollout without a required key"))
    }
}

impl Rollout {
    /// The plan; `shares` and `hold` stand in for the configured ones.
    pub fn plan(&self, shares: Option<&[Share]>, hold: Option<Duration>) -> Plan {
        let analyze = self.analysis != AnalysisMode::Off;
        let all_holding = hold.unwrap_or(self.hold);
        let plain =
            |share: &Share| plan::Step { weight: share.percent(), hold: all_holding, analyze, gate: None };
        let steps = match (shares.or(self.shares.as_deref()), self.preset) {
            (Some(shares), _) => shares.iter().map(plain).collect(),
            (None, _) if !self.steps.is_empty() => self
                .steps
                .iter()
                .map(|step| plan::Step {
                    weight: step.share.percent(),
                    hold: hold.or(step.hold).unwrap_or(self.hold),
                    analyze: analyze && step.analyze,
                    gate: step.question(),
                })
                .collect(),
            (None, Preset::Canary) => {
                let weights = [1.0, 5.0, 25.0, 50.0];
                weights.map(|weight| plan::Step { weight, hold: all_holding, analyze, gate: None }).into()
            }
            (None, Preset::BlueGreen) => {
                let approval =
                    Question { what: Gate::Approve, timeout: None, on_timeout: plan::OnGateTimeout::Fail };
                vec![plan::Step { weight: 0.0, hold: Duration::ZERO, analyze: false, gate: Some(approval) }]
            }
        };
        Plan {
            // 100 % is where the steps lead; as a step it would be waited for twice.
            steps: steps.into_iter().filter(|step| step.weight < 100.0 || step.gate.is_some()).collect(),
            ready_within: self.ready_within,
            soak: self.soak,
            analysis: Analysis {
                enforce: self.analysis == AnalysisMode::Enforce,
                min_clients: self.min_clients.into(),
                tolerance: self.tolerance.get(),
                max_failure_ratio: self.max_failures.map(|share| share.percent() / 100.0),
                alpha: self.false_rollbacks.percent() / 100.0,
                patience: self.patience,
                on_no_data: self.on_no_data.planned(),
            },
            metrics: if analyze {
                self.metrics.iter().map(|metric| metric.planned(self)).collect()
            } else {
                Vec::new()
            },
            tripwire: (self.analysis == AnalysisMode::Enforce && self.tripwire != Share::ZERO)
                .then(|| self.tripwire.percent() / 100.0),
            lease: self.lease,
            guests: !self.canary_clients.is_empty(),
            cap: self.max_new_connections,
            preview: self.preview,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_says_nothing_is_a_canary() {
        let plan = Rollout::default().plan(None, None);
        let weights: Vec<f64> = plan.steps.iter().map(|step| step.weight).collect();
        assert_eq!(weights, [1.0, 5.0, 25.0, 50.0]);
        assert!(plan.analysis.enforce && plan.steps.iter().all(|step| step.analyze && step.gate.is_none()));
        assert_eq!(plan.tripwire, Some(0.2));
    }

    #[test]
    fn blue_green_waits_for_approval_and_then_takes_all() {
        let plan = Rollout { preset: Preset::BlueGreen, ..Rollout::default() }.plan(None, None);
        assert_eq!(plan.steps.len(), 1);
        assert_eq!(plan.steps[0].weight, 0.0);
        assert_eq!(plan.steps[0].gate.as_ref().map(|gate| &gate.what), Some(&Gate::Approve));
    }

    #[test]
    fn the_command_line_stands_in_for_the_file() {
        let shares = [Share::whole(2), Share::whole(100)];
        let plan = Rollout::default().plan(Some(&shares), Some(Duration::from_secs(7)));
        assert_eq!(plan.steps.len(), 1, "100 % comes after the last step");
        assert_eq!((plan.steps[0].weight, plan.steps[0].hold), (2.0, Duration::from_secs(7)));
    }
}
