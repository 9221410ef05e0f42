//! Checks of targets that come, go, fall silent and come back.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use lb_userspace::health::{Failure, FailureKind, Health, Scheduler, TargetId};
use tokio::{sync::mpsc, time::sleep};

use crate::support::{Switch, http, next, target, timing};

#[tokio::test]
async fn a_backend_that_stops_answering_is_reported_down_within_the_bound() {
    let timing = timing(200, 100, 2, 3);
    let (events, mut received) = mpsc::channel(16);
    let scheduler = Scheduler::new(events);
    let mut backends = vec![];
    for _ in 0..8 {
        backends.push(Switch::start().await);
    }
    let check = http("/", None, "200", timing);
    scheduler
        .update((0..).zip(&backends).map(|(id, (_, address))| target(id, *address, check.clone())).collect());
    for _ in &backends {
        let event = next(&mut received).await;
        assert_eq!((event.previous, event.state, event.reason), (Health::Unknown, Health::Up, None));
    }

    // They stop at eight different points of their interval.
    let mut stopped = vec![];
    for (switch, _) in &backends {
        sleep(Duration::from_millis(23)).await;
        switch.silent.store(true, Ordering::Relaxed);
        stopped.push(Instant::now());
    }
    for _ in &backends {
        let event = next(&mut received).await;
        let took = stopped[usize::try_from(event.id.0).expect("small")].elapsed();
        assert_eq!((event.state, event.consecutive), (Health::Down, 3));
        assert_eq!(event.reason, Some(Failure::Timeout));
        assert!(took <= timing.detection_bound(), "{took:?}");
    }

    for (switch, _) in &backends {
        switch.silent.store(false, Ordering::Relaxed);
    }
    for _ in &backends {
        let event = next(&mut received).await;
        assert_eq!((event.previous, event.state, event.consecutive), (Health::Down, Health::Up, 2));
    }
    let report = scheduler.report(TargetId(0)).expect("it is a target");
    assert_eq!((report.counters.to_up, report.counters.to_down), (2, 1));
    assert!(report.counters.failures(FailureKind::Timeout) >= 3);
}

#[tokio::test]
async fn checks_of_one_target_do_not_overlap() {
    let (switch, address) = Switch::start().await;
    switch.silent.store(true, Ordering::Relaxed);
    let (events, _received) = mpsc::channel(16);
    let scheduler = Scheduler::new(events);
    scheduler.update(vec![target(0, address, http("/", None, "200", timing(50, 50, 1, 1)))]);
    sleep(Duration::from_millis(1000)).await;
    let checks = switch.connections.load(Ordering::Relaxed);
    assert!((15..=25).contains(&checks), "{checks} checks in a second, 50 ms apart");
    assert_eq!(switch.most_open.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn targets_come_and_go_at_run_time() {
    let (first, first_address) = Switch::start().await;
    let (second, second_address) = Switch::start().await;
    let check = http("/", None, "200", timing(50, 40, 1, 1));
    let (events, mut received) = mpsc::channel(16);
    let scheduler = Scheduler::new(events);

    scheduler.update(vec![target(1, first_address, check.clone())]);
    assert_eq!(next(&mut received).await.id, TargetId(1));
    let both = vec![target(1, first_address, check.clone()), target(2, second_address, check.clone())];
    scheduler.update(both.clone());
    scheduler.update(both);
    assert_eq!(next(&mut received).await.id, TargetId(2));

    scheduler.update(vec![target(2, second_address, check)]);
    sleep(Duration::from_millis(60)).await;
    let (first_before, second_before) =
        (first.connections.load(Ordering::Relaxed), second.connections.load(Ordering::Relaxed));
    sleep(Duration::from_millis(300)).await;
    assert_eq!(first.connections.load(Ordering::Relaxed), first_before);
    assert!(second.connections.load(Ordering::Relaxed) > second_before);
    assert!(scheduler.report(TargetId(1)).is_none());
    assert_eq!(scheduler.reports().len(), 1);
    assert!(received.try_recv().is_err(), "what stays is not told again");
}

#[tokio::test]
async fn a_receiver_that_sleeps_gets_the_state_and_not_the_story() {
    let (switch, address) = Switch::start().await;
    let (_other, other_address) = Switch::start().await;
    let check = http("/", None, "200", timing(20, 15, 1, 1));
    let (events, mut received) = mpsc::channel(1);
    let scheduler = Scheduler::new(events);
    scheduler.update(vec![target(1, other_address, check.clone())]);
    sleep(Duration::from_millis(50)).await;
    scheduler.update(vec![target(1, other_address, check.clone()), target(2, address, check)]);
    for silent in [true, false, true, false, true] {
        switch.silent.store(silent, Ordering::Relaxed);
        sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(next(&mut received).await.id, TargetId(1));
    let event = next(&mut received).await;
    assert_eq!((event.id, event.previous, event.state), (TargetId(2), Health::Unknown, Health::Down));
    assert!(scheduler.report(TargetId(2)).expect("it is a target").counters.to_down >= 3);
}
