use proptest::prelude::*;

use super::*;
use crate::rollout::plan::{Analysis, Question};

fn pool(name: &str) -> PoolName {
    serde_json::from_value(name.into()).expect("a name")
}

fn approval() -> Question {
    Question { what: Gate::Approve, timeout: None, on_timeout: OnGateTimeout::Fail }
}

fn step(weight: f64) -> Step {
    Step { weight, hold: Duration::from_secs(60), analyze: true, gate: None }
}

fn plan(weights: &[f64]) -> Plan {
    Plan {
        steps: weights.iter().map(|&weight| step(weight)).collect(),
        ready_within: Duration::from_secs(300),
        soak: Duration::from_secs(600),
        analysis: Analysis {
            enforce: true,
            min_clients: 100,
            tolerance: 1.5,
            max_failure_ratio: None,
            alpha: 0.01,
            patience: Duration::from_secs(900),
            on_no_data: OnNoData::Hold,
        },
        metrics: Vec::new(),
        tripwire: None,
        lease: None,
        guests: false,
        cap: None,
        preview: None,
    }
}

const START: Timestamp = Timestamp::UNIX_EPOCH;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).expect("a time")
}

fn good() -> Facts {
    Facts {
        watched: Duration::MAX,
        not_ready: None,
        stable_takes: true,
        taken_back: None,
        settled: true,
        verdict: Verdict::Fine,
        answer: Answer::None,
    }
}

fn begun(weights: &[f64]) -> Rollout {
    let rollout = Rollout::begin(pool("v2"), plan(weights), START);
    advance(&rollout, &good(), START).expect("the pool is ready")
}

/// Lets time pass until nothing happens any more; the phases and shares that it went through.
fn story(mut rollout: Rollout, facts: &Facts, seconds: i64) -> Vec<(Phase, f64)> {
    let mut story = vec![(rollout.phase, rollout.share())];
    for second in 0..seconds {
        while let Some(next) = advance(&rollout, facts, at(second)) {
            rollout = next;
            story.push((rollout.phase, rollout.share()));
        }
    }
    story
}

#[test]
fn a_good_canary_is_promoted_by_itself() {
    use Phase::{Holding, Preparing, Promoted, Soaking};
    let rollout = Rollout::begin(pool("v2"), plan(&[1.0, 10.0, 50.0]), START);
    assert_eq!(
        story(rollout, &good(), 2_000),
        [
            (Preparing, 0.0),
            (Holding, 1.0),
            (Holding, 10.0),
            (Holding, 50.0),
            (Soaking, 100.0),
            (Promoted, 100.0)
        ]
    );
}

#[test]
fn each_step_holds_for_its_time() {
    let rollout = begun(&[1.0, 10.0]);
    assert_eq!(advance(&rollout, &good(), at(59)), None);
    let next = advance(&rollout, &good(), at(60)).expect("its time is over");
    assert_eq!((next.step, next.share()), (1, 10.0));
    assert_eq!(advance(&next, &good(), at(119)), None);
}

#[test]
fn a_bad_canary_goes_back_at_once_in_every_phase() {
    let facts = Facts { verdict: Verdict::Worse("5 % refused".into()), ..good() };
    let holding = begun(&[1.0]);
    let soaking = obey(&holding, Order::PromoteFull, at(1)).expect("obeyed");
    let paused = obey(&holding, Order::Pause, at(1)).expect("obeyed");
    for rollout in [holding, soaking, paused] {
        let next = advance(&rollout, &facts, at(2)).expect("back");
        assert_eq!((next.phase, next.share()), (Phase::RolledBack, 0.0));
        assert_eq!(next.reason, "5 % refused");
    }
}

#[test]
fn in_shadow_a_bad_canary_is_only_talked_about() {
    let mut rollout = begun(&[1.0]);
    rollout.plan.analysis.enforce = false;
    let facts = Facts { verdict: Verdict::Worse("5 % refused".into()), ..good() };
    let next = advance(&rollout, &facts, at(60)).expect("goes on");
    assert_eq!(next.phase, Phase::Soaking);
    for verdict in [
        Verdict::Unsure("1 of 2".into()),
        Verdict::NoData { why: "nobody came".into(), then: OnNoData::Hold },
        Verdict::NoData { why: "nobody came".into(), then: OnNoData::Fail },
    ] {
        let facts = Facts { verdict, ..good() };
        assert_eq!(advance(&rollout, &facts, at(60)).map(|next| next.phase), Some(Phase::Soaking));
    }
}

#[test]
fn of_several_verdicts_the_gravest_counts() {
    let none = |then| Verdict::NoData { why: format!("{then:?}"), then };
    let [pass, hold, fail] = [OnNoData::Pass, OnNoData::Hold, OnNoData::Fail].map(none);
    let (unsure, worse) = (Verdict::Unsure("a".into()), Verdict::Worse("b".into()));
    let rising = [Verdict::Fine, pass, hold, fail, unsure, worse];
    for (i, gravest) in rising.iter().enumerate() {
        let forth = Verdict::gravest(rising[..=i].iter().cloned());
        let back = Verdict::gravest(rising[..=i].iter().rev().cloned());
        assert_eq!((&forth, &back), (gravest, gravest));
    }
    assert_eq!(Verdict::gravest([]), Verdict::Fine);
    let twice = [Verdict::Worse("first".into()), Verdict::Worse("second".into())];
    assert_eq!(Verdict::gravest(twice), Verdict::Worse("first".into()));
}

#[test]
fn no_data_means_what_was_asked_for() {
    let of = |then, second| {
        let rollout = begun(&[1.0]);
        let facts = Facts { verdict: Verdict::NoData { why: "3 of 100 clients".into(), then }, ..good() };
        advance(&rollout, &facts, at(second)).map(|next| next.phase)
    };
    assert_eq!(of(OnNoData::Hold, 100_000), None);
    assert_eq!(of(OnNoData::Pass, 60), Some(Phase::Soaking));
    assert_eq!(of(OnNoData::Fail, 60 + 899), None);
    assert_eq!(of(OnNoData::Fail, 60 + 900), Some(Phase::RolledBack));
}

#[test]
fn a_canary_that_nobody_is_sure_of_waits_and_goes_back_in_the_end() {
    let facts = Facts { verdict: Verdict::Unsure("2 of 3 failures are its own".into()), ..good() };
    let rollout = begun(&[1.0]);
    assert_eq!(advance(&rollout, &facts, at(959)), None);
    assert_eq!(advance(&rollout, &facts, at(960)).map(|next| next.phase), Some(Phase::RolledBack));
}

#[test]
fn a_pause_stops_the_clock_and_not_the_analysis() {
    let rollout = begun(&[1.0]);
    let paused = obey(&rollout, Order::Pause, at(30)).expect("obeyed");
    assert_eq!(advance(&paused, &good(), at(10_000)), None);
    let resumed = obey(&paused, Order::Resume, at(1_000)).expect("obeyed");
    assert_eq!(resumed.elapsed(at(1_000)), Duration::from_secs(30));
    assert_eq!(advance(&resumed, &good(), at(1_029)), None);
    assert!(advance(&resumed, &good(), at(1_030)).is_some());
}

#[test]
fn a_gate_waits_for_approval_which_may_come_early() {
    let mut rollout = begun(&[1.0, 10.0]);
    rollout.plan.steps[0].gate = Some(Question {
        what: Gate::Approve,
        timeout: Some(Duration::from_secs(3_600)),
        on_timeout: OnGateTimeout::Fail,
    });
    let waiting = advance(&rollout, &good(), at(60)).expect("at the gate");
    assert_eq!((waiting.phase, waiting.share()), (Phase::Gate, 1.0));
    assert_eq!(
        advance(&waiting, &Facts { answer: Answer::Yes, ..good() }, at(61)),
        None,
        "not a machine's to say"
    );
    let approved = obey(&waiting, Order::Approve, at(61)).expect("obeyed");
    let next = advance(&approved, &good(), at(61)).expect("goes on");
    assert_eq!((next.phase, next.step, next.approved), (Phase::Holding, 1, false));
    let late = advance(&waiting, &good(), at(60 + 3_600)).expect("nobody came");
    assert_eq!(late.phase, Phase::RolledBack);

    let early = obey(&rollout, Order::Approve, at(1)).expect("obeyed");
    let waiting = advance(&early, &good(), at(60)).expect("at the gate");
    assert_eq!(advance(&waiting, &good(), at(60)).map(|next| next.step), Some(1));
    assert!(obey(&next, Order::Approve, at(62)).is_err(), "no gate is left");
}

#[test]
fn an_early_approval_is_kept_until_its_gate() {
    let mut rollout = begun(&[5.0, 25.0, 50.0]);
    rollout.plan.steps[1].gate = Some(approval());
    let early = obey(&rollout, Order::Approve, at(1)).expect("obeyed");
    let second = advance(&early, &good(), at(60)).expect("the first step is over");
    assert!(second.approved, "the first step has no gate: it is for the second one's");
    let waiting = advance(&second, &good(), at(120)).expect("at the gate");
    let third = advance(&waiting, &good(), at(120)).expect("goes on");
    assert_eq!((third.phase, third.step, third.approved), (Phase::Holding, 2, false));
    let skipped = obey(&second, Order::Promote, at(61)).expect("obeyed");
    assert!(!skipped.approved, "its gate was passed by");
}

#[test]
fn while_it_soaks_no_gate_is_left() {
    let mut rollout = begun(&[5.0]);
    rollout.plan.steps[0].gate = Some(approval());
    let soaking = obey(&rollout, Order::Promote, at(1)).expect("obeyed");
    assert_eq!(soaking.phase, Phase::Soaking);
    assert!(obey(&soaking, Order::Approve, at(2)).is_err());
}

#[test]
fn a_rollout_without_steps_goes_to_everybody_at_once() {
    use Phase::{Preparing, Promoted, Soaking};
    let rollout = Rollout::begin(pool("v2"), plan(&[]), START);
    assert_eq!(story(rollout, &good(), 1_000), [(Preparing, 0.0), (Soaking, 100.0), (Promoted, 100.0)]);
}

#[test]
fn the_next_share_is_known_while_a_step_holds() {
    let rollout = Rollout::begin(pool("v2"), plan(&[1.0, 10.0]), START);
    assert_eq!((rollout.first_share(), rollout.next_share()), (1.0, None));
    let first = begun(&[1.0, 10.0]);
    let second = obey(&first, Order::Promote, at(1)).expect("obeyed");
    assert_eq!((first.next_share(), second.next_share()), (Some(10.0), Some(100.0)));
    assert_eq!(Rollout::begin(pool("v2"), plan(&[]), START).first_share(), 100.0);
}

#[test]
fn what_is_over_is_open_to_nobody() {
    let promoted = advance(&begun(&[]), &good(), at(600)).expect("promoted");
    assert_eq!((promoted.phase, promoted.is_open()), (Phase::Promoted, false));
}

#[test]
fn promoted_while_it_soaks_it_waits_no_more() {
    let soaking = obey(&begun(&[1.0]), Order::PromoteFull, at(1)).expect("obeyed");
    for order in [Order::Promote, Order::PromoteFull, Order::Force] {
        let hurried = obey(&soaking, order, at(100)).expect("obeyed");
        assert_eq!(advance(&hurried, &good(), at(100)).map(|next| next.phase), Some(Phase::Promoted));
        let unsettled = Facts { settled: false, ..good() };
        assert_eq!(advance(&hurried, &unsettled, at(100)), None, "but for flows that are elsewhere");
    }
    let paused = obey(&soaking, Order::Pause, at(50)).expect("obeyed");
    let forced = obey(&paused, Order::Force, at(100)).expect("obeyed");
    assert_eq!((forced.forced, forced.tripwire(), forced.paused), (true, None, None));
    let back = obey(&forced, Order::Abort, at(101)).expect("obeyed");
    let again = obey(&back, Order::Retry, at(102)).expect("obeyed");
    assert_eq!(again, Rollout::begin(pool("v2"), soaking.plan.clone(), at(102)), "nothing of it is left");
}

#[test]
fn a_soak_does_not_end_while_nobody_is_sure() {
    let soaking = obey(&begun(&[1.0]), Order::PromoteFull, START).expect("obeyed");
    let unsure = Facts { verdict: Verdict::Unsure("1 of 3 bad".into()), ..good() };
    assert_eq!(advance(&soaking, &unsure, at(600 + 899)), None);
    assert_eq!(advance(&soaking, &unsure, at(600 + 900)).map(|next| next.phase), Some(Phase::RolledBack));
    let promoted = Some(Phase::Promoted);
    assert_eq!(advance(&soaking, &good(), at(600)).map(|next| next.phase), promoted);
    let hurried = obey(&soaking, Order::Promote, at(1)).expect("obeyed");
    assert_eq!(advance(&hurried, &unsure, at(1)).map(|next| next.phase), promoted, "an operator is sure");
}

#[test]
fn what_nobody_has_watched_is_held_against_nobody() {
    let looked = |seconds| Facts { watched: Duration::from_secs(seconds), ..good() };
    let no_data = |then, seconds| Facts {
        verdict: Verdict::NoData { why: "3 of 100 clients".into(), then },
        ..looked(seconds)
    };
    // An agent that comes back a day later.
    let (late, rollout) = (at(86_400), begun(&[1.0]));
    assert_eq!(advance(&rollout, &no_data(OnNoData::Fail, 0), late), None);
    let back = advance(&rollout, &no_data(OnNoData::Fail, 960), late).map(|next| next.phase);
    assert_eq!(back, Some(Phase::RolledBack));
    let unsure = Facts { verdict: Verdict::Unsure("2 of 3".into()), ..looked(0) };
    assert_eq!(advance(&rollout, &unsure, late), None);
    assert_eq!(advance(&rollout, &no_data(OnNoData::Pass, 59), late), None, "it was not measured");
    assert!(advance(&rollout, &no_data(OnNoData::Pass, 60), late).is_some());

    let mut gated = rollout;
    let timeout = Some(Duration::from_secs(3_600));
    gated.plan.steps[0].gate = Some(Question { timeout, ..approval() });
    let waiting = advance(&gated, &good(), at(60)).expect("at the gate");
    assert_eq!(advance(&waiting, &looked(0), late), None, "it was not asked");
    assert!(advance(&waiting, &looked(3_600), late).is_some());

    let preparing = Rollout::begin(pool("v2"), plan(&[1.0]), START);
    let ill = |seconds| Facts { not_ready: Some("0 of 3".into()), ..looked(seconds) };
    assert_eq!(advance(&preparing, &ill(0), late), None);
    assert_eq!(advance(&preparing, &ill(300), late).map(|next| next.phase), Some(Phase::Failed));
}

#[test]
fn where_it_ended_is_known() {
    let holding = begun(&[1.0]);
    let soaking = obey(&holding, Order::PromoteFull, at(1)).expect("obeyed");
    for (rollout, phase) in [(holding, Phase::Holding), (soaking, Phase::Soaking)] {
        assert_eq!(rollout.ended_in, None);
        assert_eq!(obey(&rollout, Order::Abort, at(2)).map(|over| over.ended_in), Ok(Some(phase)));
    }
}

#[test]
fn a_machine_at_the_gate_says_yes_or_no() {
    let mut rollout = begun(&[1.0, 10.0]);
    rollout.plan.steps[0].gate = Some(Question {
        what: Gate::Http("http://127.0.0.1:8000/go".into()),
        timeout: None,
        on_timeout: OnGateTimeout::Fail,
    });
    let waiting = advance(&rollout, &good(), at(60)).expect("at the gate");
    let told = |answer| advance(&waiting, &Facts { answer, ..good() }, at(70)).map(|next| next.phase);
    assert_eq!(told(Answer::None), None);
    assert_eq!(told(Answer::Yes), Some(Phase::Holding));
    assert_eq!(told(Answer::No("freeze".into())), Some(Phase::RolledBack));
}

#[test]
fn a_pool_that_is_never_ready_fails_and_nothing_has_moved() {
    let rollout = Rollout::begin(pool("v2"), plan(&[1.0]), START);
    let facts = Facts { not_ready: Some("0 of 3 backends are healthy".into()), ..good() };
    assert_eq!(advance(&rollout, &facts, at(299)), None);
    let failed = advance(&rollout, &facts, at(300)).expect("given up");
    assert_eq!((failed.phase, failed.share()), (Phase::Failed, 0.0));
}

#[test]
fn a_canary_that_dies_goes_back_unless_there_is_nobody_else() {
    let rollout = begun(&[50.0]);
    let dead = Facts { not_ready: Some("0 of 3 backends are healthy".into()), ..good() };
    assert_eq!(advance(&rollout, &dead, at(1)).map(|next| next.phase), Some(Phase::RolledBack));
    let all_dead = Facts { stable_takes: false, ..dead };
    assert_eq!(advance(&rollout, &all_dead, at(1)), None);
}

#[test]
fn what_is_forced_is_taken_back_by_operators_only() {
    let preparing = Rollout::begin(pool("v2"), plan(&[1.0]), START);
    let paused = obey(&begun(&[1.0]), Order::Pause, at(1)).expect("obeyed");
    for rollout in [preparing, paused] {
        let forced = obey(&rollout, Order::Force, at(2)).expect("obeyed");
        assert_eq!((forced.phase, forced.share(), forced.paused), (Phase::Soaking, 100.0, None));
        let bad = Facts {
            verdict: Verdict::Worse("all of them".into()),
            not_ready: Some("0 of 3 backends are healthy".into()),
            ..good()
        };
        assert_eq!(advance(&forced, &bad, at(3)), None);
        let by_hand = Facts { taken_back: Some("rolled back by hand".into()), ..good() };
        assert_eq!(advance(&forced, &by_hand, at(3)).map(|next| next.phase), Some(Phase::RolledBack));
        assert_eq!(obey(&forced, Order::Abort, at(3)).map(|next| next.phase), Ok(Phase::RolledBack));
    }
}

#[test]
fn what_was_rolled_back_by_hand_stays_back_and_can_be_tried_again() {
    let rollout = begun(&[1.0]);
    let facts = Facts { taken_back: Some("rolled back by hand".into()), ..good() };
    let back = advance(&rollout, &facts, at(1)).expect("back");
    assert_eq!(advance(&back, &good(), at(10_000)), None);
    assert!(obey(&back, Order::Resume, at(2)).is_err());
    let again = obey(&back, Order::Retry, at(3)).expect("obeyed");
    assert_eq!((again.phase, again.step, again.share()), (Phase::Preparing, 0, 0.0));
}

#[test]
fn a_step_of_nothing_is_open_to_guests_and_to_nobody_else() {
    let mut rollout = begun(&[0.0, 10.0]);
    assert!(!rollout.is_open(), "there are no guests");
    rollout.plan.guests = true;
    assert!(rollout.is_open() && rollout.share() == 0.0);
    assert!(!Rollout::begin(pool("v2"), rollout.plan.clone(), START).is_open(), "it is not ready");
    let back = obey(&rollout, Order::Abort, at(1)).expect("obeyed");
    assert!(!back.is_open(), "a rollback ends it for guests, too");
}

#[test]
fn what_is_aborted_before_anybody_was_let_in_was_not_rolled_back() {
    let aborted = |rollout: &Rollout| obey(rollout, Order::Abort, at(1)).expect("obeyed");
    let preparing = Rollout::begin(pool("v2"), plan(&[1.0]), START);
    let mut step_of_nothing = begun(&[0.0, 10.0]);
    for closed in [&preparing, &step_of_nothing] {
        assert_eq!((aborted(closed).phase, aborted(closed).reason.as_str()), (Phase::Failed, "aborted"));
        assert!(obey(&aborted(closed), Order::Retry, at(2)).is_ok());
    }
    step_of_nothing.plan.guests = true;
    assert_eq!(aborted(&step_of_nothing).phase, Phase::RolledBack, "guests were there");
}

#[test]
fn the_journal_keeps_all_of_it() {
    let mut rollout = begun(&[0.1, 10.0]);
    rollout.plan.steps[1].gate = Some(Question {
        what: Gate::Command(vec!["true".into()]),
        timeout: None,
        on_timeout: OnGateTimeout::Pass,
    });
    rollout.plan.lease = Some(Duration::from_millis(1_500));
    let text = serde_json::to_string(&rollout).expect("JSON");
    assert_eq!(serde_json::from_str::<Rollout>(&text).expect("the same"), rollout);
}

fn any_facts() -> impl Strategy<Value = Facts> {
    let verdict = prop_oneof![
        4 => Just(Verdict::Fine),
        1 => Just(Verdict::Worse("bad".into())),
        2 => Just(Verdict::Unsure("who knows".into())),
        2 => prop_oneof![Just(OnNoData::Hold), Just(OnNoData::Pass), Just(OnNoData::Fail)]
            .prop_map(|then| Verdict::NoData { why: "nobody came".into(), then }),
    ];
    let answer = prop_oneof![Just(Answer::None), Just(Answer::Yes), Just(Answer::No("no".into()))];
    let sometimes = |text: &'static str| prop_oneof![9 => Just(None), 1 => Just(Some(text.to_owned()))];
    let watched = prop_oneof![Just(Duration::ZERO), Just(Duration::MAX)];
    (watched, sometimes("ill"), any::<bool>(), sometimes("by hand"), any::<bool>(), verdict, answer).prop_map(
        |(watched, not_ready, stable_takes, taken_back, settled, verdict, answer)| Facts {
            watched,
            not_ready,
            stable_takes,
            taken_back,
            settled,
            verdict,
            answer,
        },
    )
}

fn any_order() -> impl Strategy<Value = Order> {
    use Order::{Abort, Approve, Force, Pause, Promote, PromoteFull, Resume, Retry};
    prop_oneof![
        4 => Just(Approve), 4 => Just(Promote), 4 => Just(Pause), 4 => Just(Resume), 2 => Just(Retry), 1 => Just(PromoteFull),
        1 => Just(Force), 1 => Just(Abort)
    ]
}

/// Some of its steps have gates, some of these a time.
fn any_plan() -> impl Strategy<Value = Plan> {
    let what = prop_oneof![Just(Gate::Approve), Just(Gate::File("/run/go".to_owned()))];
    let timeout = prop::option::of((1u64..500).prop_map(Duration::from_secs));
    let on_timeout = prop_oneof![Just(OnGateTimeout::Fail), Just(OnGateTimeout::Pass)];
    let gate = (what, timeout, on_timeout).prop_map(|(what, timeout, on_timeout)| Question {
        what,
        timeout,
        on_timeout,
    });
    prop::collection::vec(prop::option::of(gate), 0..4).prop_map(|gates| {
        let mut plan = plan(&[0.1, 5.0, 25.0][..gates.len()]);
        plan.steps.iter_mut().zip(gates).for_each(|(step, gate)| step.gate = gate);
        plan
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    /// Whatever is seen and ordered: the share only grows until it is nothing, an abort is obeyed wherever it is given,
    /// a worse canary is gone after one look unless it was forced, no gate opens by itself, and what is over stays over
    /// until it is tried again from the beginning.
    #[test]
    fn a_rollout_goes_up_or_back_and_never_to_and_fro(
        plan in any_plan(),
        history in prop::collection::vec((any_facts(), prop::option::of(any_order()), 0i64..200), 1..60),
    ) {
        let mut rollout = Rollout::begin(pool("v2"), plan, START);
        let mut now = 0;
        for (facts, order, pause) in history {
            now += pause;
            let before = rollout.clone();
            if let Some(order) = order {
                match obey(&rollout, order, at(now)) {
                    Ok(next) => rollout = next,
                    Err(_) => prop_assert!(order != Order::Abort || before.phase.is_over()),
                }
                let done = rollout != before;
                match order {
                    Order::Abort if !before.phase.is_over() => {
                        let end = if before.is_open() { Phase::RolledBack } else { Phase::Failed };
                        prop_assert_eq!(rollout.phase, end);
                    }
                    Order::Force if !before.phase.is_over() => prop_assert_eq!(rollout.phase, Phase::Soaking),
                    Order::Retry => {
                        prop_assert_eq!(done, matches!(before.phase, Phase::RolledBack | Phase::Failed));
                        prop_assert!(!done || rollout == Rollout::begin(pool("v2"), before.plan.clone(), at(now)));
                    }
                    _ => {}
                }
                prop_assert!(order == Order::Abort || rollout.phase.is_over() || rollout.share() >= before.share());
            }
            while let Some(next) = advance(&rollout, &facts, at(now)) {
                prop_assert!(next.share() >= rollout.share() || next.share() == 0.0);
                prop_assert!(!rollout.phase.is_over());
                if rollout.phase == Phase::Gate && !next.phase.is_over() {
                    let gate = rollout.current().and_then(|step| step.gate.as_ref());
                    let late = gate.is_some_and(|gate| gate.timeout.is_some() && gate.on_timeout == OnGateTimeout::Pass);
                    let told = gate.is_some_and(|gate| gate.what != Gate::Approve) && facts.answer == Answer::Yes;
                    prop_assert!(rollout.approved || late || told);
                }
                prop_assert!(!next.approved || rollout.approved);
                rollout = next;
            }
            if matches!(facts.verdict, Verdict::Worse(_)) {
                prop_assert!(rollout.phase.is_over() || rollout.phase == Phase::Preparing || rollout.forced);
            }
            let again = order == Some(Order::Retry);
            prop_assert!(!before.phase.is_over() || rollout == before || again);
            prop_assert_eq!(rollout.phase.is_over(), rollout.ended_in.is_some());
            prop_assert!(rollout.share() <= 100.0 && rollout.elapsed(at(now)) <= Duration::from_secs(now as u64));
        }
    }
}
