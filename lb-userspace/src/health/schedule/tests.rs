use proptest::prelude::*;

use super::*;
use crate::health::{CheckKind, Failure, Health, Timing, Wish};

const MS: Duration = Duration::from_millis(1);

fn timing(interval: Duration, timeout: Duration, unhealthy: u32) -> Timing {
    Timing::new(interval, timeout, 1, unhealthy).expect("the tests' timings can be kept")
}

fn target(id: u64, timing: Timing) -> Target {
    Target {
        id: TargetId(id),
        address: SocketAddr::from(([10, 0, 0, 1], 80)),
        check: Check { kind: CheckKind::Tcp, timing },
        mark: None,
        via: None,
    }
}

fn targets(n: u64, timing: Timing) -> Vec<Target> {
    (0..n).map(|id| target(id, timing)).collect()
}

fn passed() -> ProbeResult {
    ProbeResult { outcome: Ok(()), duration: MS, words: Words::default() }
}

fn failed() -> ProbeResult {
    ProbeResult { outcome: Err(Failure::ConnectTimeout.into()), duration: MS, words: Words::default() }
}

fn said(line: &str) -> ProbeResult {
    ProbeResult { words: line.parse().expect("the tests' words are known"), ..passed() }
}

/// Runs until `end`; each check takes no time and ends as `result` says. The checks, in order.
fn run(
    schedule: &mut Schedule,
    end: Instant,
    result: impl Fn(TargetId, Instant) -> ProbeResult,
) -> Vec<(TargetId, Instant)> {
    let mut checks = vec![];
    while let Some(now) = schedule.next_due().filter(|&due| due <= end) {
        let job = schedule.start_due(now).expect("it is due");
        let id = job.ticket.0.id;
        checks.push((id, now));
        schedule.finish(job.ticket, result(id, now), now);
    }
    checks
}

#[test]
fn a_single_target_is_checked_at_once() {
    let (mut schedule, now) = (Schedule::new(1), Instant::now());
    schedule.update(targets(1, timing(3600 * 1000 * MS, 1000 * MS, 3)), now);
    assert!(schedule.next_due().expect("a check is planned") <= now + MS);
}

#[test]
fn many_first_checks_are_spread_over_a_second_and_later_ones_over_the_interval() {
    let (mut schedule, now) = (Schedule::new(1), Instant::now());
    schedule.update(targets(10_000, timing(5000 * MS, 1000 * MS, 3)), now);
    let first = run(&mut schedule, now + 1000 * MS, |_, _| passed());
    let ids: HashSet<_> = first.iter().map(|(id, _)| id).collect();
    assert_eq!(ids.len(), 10_000, "every target is checked within a second");

    let later = run(&mut schedule, now + 60_000 * MS, |_, _| passed());
    let mut per_100_ms = [0_u32; 550];
    for (_, at) in later.iter().filter(|(_, at)| *at >= now + 5000 * MS) {
        let bucket = (*at - now - 5000 * MS).as_millis() / 100;
        per_100_ms[usize::try_from(bucket).expect("small")] += 1;
    }
    let (least, most) = (per_100_ms.iter().min(), per_100_ms.iter().max());
    assert!(
        least > Some(&120) && most < Some(&320),
        "about 205 checks each 100 ms, not {least:?} to {most:?}"
    );
}

#[test]
fn a_target_that_stays_keeps_its_state_and_its_plan() {
    let (mut schedule, now) = (Schedule::new(1), Instant::now());
    let list = targets(3, timing(1000 * MS, 100 * MS, 3));
    schedule.update(list.clone(), now);
    run(&mut schedule, now + 2000 * MS, |_, _| passed());
    let due = schedule.next_due();

    schedule.update(list, now + 2000 * MS);
    assert_eq!(schedule.next_due(), due);
    assert_eq!(schedule.report(TargetId(1)).expect("it stays").health, Health::Up);
}

#[test]
fn a_removed_target_is_checked_no_more_and_its_late_result_is_dropped() {
    let (mut schedule, now) = (Schedule::new(1), Instant::now());
    schedule.update(targets(1, timing(1000 * MS, 100 * MS, 3)), now);
    let job = schedule.start_due(now + 10 * MS).expect("it is due");
    schedule.update(vec![], now + 11 * MS);
    schedule.finish(job.ticket, failed(), now + 20 * MS);
    assert!(schedule.report(TargetId(0)).is_none());
    assert_eq!((schedule.next_due(), schedule.next_event().is_some()), (None, false));
}

#[test]
fn another_check_keeps_the_state_and_another_address_does_not() {
    let (mut schedule, now) = (Schedule::new(1), Instant::now());
    schedule.update(targets(1, timing(1000 * MS, 100 * MS, 3)), now);
    run(&mut schedule, now + 10 * MS, |_, _| passed());

    let other_check = target(0, timing(2000 * MS, 100 * MS, 5));
    schedule.update(vec![other_check.clone()], now + 20 * MS);
    assert_eq!(schedule.report(TargetId(0)).expect("it stays").health, Health::Up);
    assert!(schedule.next_due().expect("planned") <= now + 21 * MS, "it is checked anew at once");

    let other_address = Target { address: ([10, 0, 0, 2], 80).into(), ..other_check };
    let job = schedule.start_due(now + 21 * MS).expect("it is due");
    schedule.update(vec![other_address], now + 22 * MS);
    schedule.finish(job.ticket, passed(), now + 23 * MS);
    let report = schedule.report(TargetId(0)).expect("it is there");
    assert_eq!((report.health, report.counters), (Health::Unknown, Counters::default()));
}

#[test]
fn whoever_is_asked_another_way_keeps_its_state() {
    let (mut schedule, now) = (Schedule::new(1), Instant::now());
    let direct = target(0, timing(1000 * MS, 100 * MS, 3));
    schedule.update(vec![direct.clone()], now);
    run(&mut schedule, now + 10 * MS, |_, _| passed());
    let via = Some(Via { service: "web".into(), backend: direct.address });
    let vip = Target { address: ([203, 0, 113, 10], 80).into(), via, ..direct.clone() };
    schedule.update(vec![vip.clone()], now + 20 * MS);
    assert_eq!(schedule.report(TargetId(0)).expect("it stays").health, Health::Up);
    let job = schedule.start_due(now + 21 * MS).expect("it is checked anew at once");
    assert_eq!((job.address, &job.via), (vip.address, &vip.via));
    schedule.finish(job.ticket, passed(), now + 22 * MS);
    let other_port = Target { address: ([203, 0, 113, 10], 81).into(), ..vip };
    schedule.update(vec![other_port], now + 30 * MS);
    assert_eq!(schedule.report(TargetId(0)).expect("it is there").health, Health::Unknown);
}

#[test]
fn a_check_that_is_under_way_does_not_start_again() {
    let (mut schedule, now) = (Schedule::new(1), Instant::now());
    schedule.update(targets(1, timing(1000 * MS, 100 * MS, 3)), now);
    let job = schedule.start_due(now + MS).expect("it is due");
    assert!(schedule.start_due(now + 3600 * 1000 * MS).is_none());
    schedule.finish(job.ticket, passed(), now + 3600 * 1000 * MS);
    assert!(schedule.start_due(now + 3600 * 1000 * MS).is_some());
}

#[test]
fn a_late_check_is_not_caught_up() {
    let (mut schedule, now) = (Schedule::new(1), Instant::now());
    schedule.update(targets(1, timing(1000 * MS, 100 * MS, 3)), now);
    run(&mut schedule, now + 5000 * MS, |_, _| passed());
    let asleep_until = now + 100_000 * MS;
    let mut checks = 0;
    while let Some(job) = schedule.start_due(asleep_until) {
        schedule.finish(job.ticket, passed(), asleep_until);
        checks += 1;
        assert!(checks <= 2, "the ninety checks that were slept through are not run");
    }
}

#[test]
fn an_event_tells_the_way_from_what_was_told_to_what_is() {
    let (mut schedule, now) = (Schedule::new(1), Instant::now());
    schedule.update(targets(1, timing(1000 * MS, 100 * MS, 1)), now);
    run(&mut schedule, now + 10 * MS, |_, _| failed());
    run(&mut schedule, now + 2000 * MS, |_, _| passed());
    let event = schedule.next_event().expect("it came up").transition;
    assert_eq!((event.previous, event.state), (Health::Unknown, Health::Up));

    run(&mut schedule, now + 4000 * MS, |_, _| failed());
    run(&mut schedule, now + 6000 * MS, |_, _| passed());
    assert!(schedule.next_event().is_none(), "it went and came back while nobody listened");
    assert!(schedule.report(TargetId(0)).expect("it is there").counters.to_down >= 2);
}

#[test]
fn what_this_host_could_not_run_says_nothing_about_a_target() {
    let (mut schedule, now) = (Schedule::new(1), Instant::now());
    schedule.update(targets(1, timing(1000 * MS, 100 * MS, 1)), now);
    run(&mut schedule, now + 10 * MS, |_, _| passed());
    run(&mut schedule, now + 10_000 * MS, |_, _| ProbeResult {
        outcome: Err(Trouble::Mark.into()),
        ..passed()
    });
    let report = schedule.report(TargetId(0)).expect("it is there");
    assert_eq!((report.health, report.counters.checks), (Health::Up, 1));
    assert!(report.counters.not_run >= 9);
}

#[test]
fn an_agents_words_are_told_when_what_stands_changes() {
    let (mut schedule, now) = (Schedule::new(1), Instant::now());
    let agent = Check { kind: CheckKind::Agent, timing: timing(1000 * MS, 100 * MS, 3) };
    schedule.update(vec![Target { check: agent, ..target(0, timing(1000 * MS, 100 * MS, 3)) }], now);
    let mut told = vec![];
    let mut end = now + 10 * MS;
    for result in [said("up"), said("75%"), said("75% up"), failed(), said("drain"), said("ready 100%")] {
        run(&mut schedule, end, |_, _| result.clone());
        end += 1000 * MS;
        told.extend(schedule.next_event().map(|told| (told.transition.previous, told.advice.to_string())));
    }
    assert_eq!(
        told,
        [
            (Health::Unknown, "up ready 100%".to_owned()),
            (Health::Up, "up ready 75%".to_owned()),
            (Health::Up, "up drain 75%".to_owned()),
            (Health::Up, "up ready 100%".to_owned()),
        ]
    );
    let report = schedule.report(TargetId(0)).expect("it is there");
    assert_eq!((report.health, report.advice.wish), (Health::Up, Wish::Ready));
}

#[test]
fn changes_faster_than_intervals_do_not_pile_up() {
    let (mut schedule, now) = (Schedule::new(1), Instant::now());
    for n in 0..10_000 {
        let interval = if n % 2 == 0 { 3_600_000 * MS } else { 3_600_001 * MS };
        schedule.update(targets(1, timing(interval, 100 * MS, 3)), now);
    }
    assert!(schedule.due.len() < 100, "{} plans for one target", schedule.due.len());
}

proptest! {
    /// `interval + (unhealthy - 1) * fast + timeout`, with checks that start early, as far as they may, or late
    /// by what is left of the jitter then.
    #[test]
    fn a_target_that_stops_answering_is_down_within_the_bound(
        seed: u64,
        interval_ms in 100u64..10_000,
        timeout_share in 1u64..=100,
        fast_share in 10u32..=100,
        unhealthy in 1u32..6,
        stop_after in 0u64..1_000,
        starts in prop::collection::vec((any::<bool>(), 0u32..=100), 16),
    ) {
        let interval = Duration::from_millis(interval_ms);
        let fast = interval * fast_share / 100;
        let timeout = fast * u32::try_from(timeout_share).expect("small") / 100;
        let timing = timing(interval, timeout, unhealthy);
        let timing = timing.with_intervals(Some(fast), None).expect("it can be kept");
        let (mut schedule, start) = (Schedule::new(seed), Instant::now());
        schedule.update(vec![target(0, timing)], start);
        let stopped = start + interval / 2 + interval * u32::try_from(stop_after).expect("small") / 100;

        for n in 0.. {
            let (early, share) = starts[n % starts.len()];
            let due = schedule.next_due().expect("there is always a next check");
            let begun = match early {
                true => due - MAX_EARLY.min(fast / 128) * share / 100,
                false => due + fast / 129 * share / 100,
            };
            let job = schedule.start_due(begun).expect("it is due");
            let (result, ended) = match begun < stopped {
                true => (passed(), begun + MS.min(timing.timeout())),
                false => (failed(), begun + timing.timeout()),
            };
            schedule.finish(job.ticket, result, ended);
            let Some(event) = schedule.next_event().map(|told| told.transition) else { continue };
            if event.state == Health::Down {
                let took = ended - stopped;
                prop_assert!(took <= timing.detection_bound(), "{took:?} > {:?}", timing.detection_bound());
                break;
            }
        }
    }
}
