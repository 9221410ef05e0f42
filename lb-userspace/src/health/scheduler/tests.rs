//! When checks are made, on a clock that stands still unless everybody waits.

use std::collections::VecDeque;

use tokio::time::{self, sleep};

use super::*;
use crate::health::{Check, CheckKind, Miss, Timing, Words};

const SECOND: Duration = Duration::from_secs(1);

/// What the next checks meet; after that they pass.
type Script = Arc<Mutex<VecDeque<Result<(), Failure>>>>;

/// A scheduler of one target whose checks take 10 ms and go as the script says; when they began.
fn scripted(
    timing: Timing,
    script: &Script,
) -> (Scheduler, mpsc::Receiver<HealthEvent>, mpsc::UnboundedReceiver<time::Instant>) {
    let (events, told) = mpsc::channel(16);
    let (begun, begins) = mpsc::unbounded_channel();
    let script = Arc::clone(script);
    let scheduler = Scheduler::with(events, move |_| {
        begun.send(time::Instant::now()).expect("the test listens");
        let result = script.lock().expect("no test panicked").pop_front().unwrap_or(Ok(()));
        async move {
            sleep(SECOND / 100).await;
            let outcome = result.map_err(Miss::from);
            ProbeResult { outcome, duration: SECOND / 100, words: Words::default() }
        }
    });
    let check = Check { kind: CheckKind::Tcp, timing };
    let target =
        Target { id: TargetId(1), address: ([127, 0, 0, 1], 1).into(), check, mark: None, via: None };
    scheduler.update(vec![target]);
    (scheduler, told, begins)
}

/// From the start of one check to the start of the next, in seconds; jitter takes up to a sixteenth of it.
async fn gaps(begins: &mut mpsc::UnboundedReceiver<time::Instant>, count: usize) -> Vec<f64> {
    let mut before = begins.recv().await.expect("the scheduler lives");
    let mut gaps = vec![];
    for _ in 0..count {
        let now = begins.recv().await.expect("the scheduler lives");
        gaps.push((now - before).as_secs_f64());
        before = now;
    }
    gaps
}

fn assert_intervals(gaps: &[f64], expected: &[f64]) {
    assert_eq!(gaps.len(), expected.len());
    for (n, (gap, expected)) in gaps.iter().zip(expected).enumerate() {
        let range = expected * 15.0 / 16.0 - 0.006..=expected + 0.006;
        assert!(range.contains(gap), "gap {n} is {gap}, expected about {expected}: {gaps:?}");
    }
}

fn timing() -> Timing {
    let timing = Timing::new(4 * SECOND, SECOND / 2, 2, 3).expect("it can be kept");
    timing.with_intervals(Some(SECOND), Some(20 * SECOND)).expect("it can be kept")
}

#[tokio::test(start_paused = true)]
async fn checks_are_fast_while_a_change_is_pending_and_slow_while_a_target_is_down() {
    let (pass, fail) = (Ok(()), Err(Failure::Timeout));
    let script = [&pass, &pass, &pass, &fail, &fail, &fail, &fail, &pass, &pass].map(Clone::clone);
    let script = Arc::new(Mutex::new(VecDeque::from(script)));
    let (_scheduler, mut told, mut begins) = scripted(timing(), &script);
    // The second check goes anywhere in the interval, so that crowds spread.
    let gaps = gaps(&mut begins, 10).await;
    assert!(gaps[0] <= 4.0, "{gaps:?}");
    // Up; two failures pending; down; down; a success pending; up.
    assert_intervals(&gaps[1..], &[4.0, 4.0, 1.0, 1.0, 20.0, 20.0, 1.0, 4.0, 4.0]);

    for (previous, state, consecutive) in
        [(Health::Unknown, Health::Up, 1), (Health::Up, Health::Down, 3), (Health::Down, Health::Up, 2)]
    {
        let event = told.try_recv().expect("it was told");
        assert_eq!((event.previous, event.state, event.consecutive), (previous, state, consecutive));
    }
    assert!(told.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn a_single_failure_brings_the_usual_interval_back_once_it_is_over() {
    let script =
        [Ok(()), Ok(()), Err(Failure::Reset), Ok(()), Err(Failure::Reset), Err(Failure::Reset), Ok(())];
    let script = Arc::new(Mutex::new(VecDeque::from(script)));
    let (scheduler, mut told, mut begins) = scripted(timing(), &script);
    let gaps = gaps(&mut begins, 8).await;
    assert_intervals(&gaps[1..], &[4.0, 1.0, 4.0, 1.0, 1.0, 4.0, 4.0]);
    assert_eq!(told.try_recv().expect("it came up").state, Health::Up);
    assert!(told.try_recv().is_err(), "two failures in a row are not three");
    let report = scheduler.report(TargetId(1)).expect("it is a target");
    assert_eq!((report.counters.to_up, report.counters.to_down), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn without_other_intervals_there_is_one() {
    let script = [Ok(()), Ok(()), Err(Failure::Timeout), Err(Failure::Timeout), Err(Failure::Timeout)];
    let script = Arc::new(Mutex::new(VecDeque::from(script)));
    let timing = Timing::new(4 * SECOND, SECOND, 2, 3).expect("it can be kept");
    let (_scheduler, mut told, mut begins) = scripted(timing, &script);
    let began = time::Instant::now();
    let gaps = gaps(&mut begins, 7).await;
    assert_intervals(&gaps[1..], &[4.0; 6]);
    assert_eq!(told.try_recv().expect("it came up").state, Health::Up);
    let down = told.try_recv().expect("it went down");
    assert_eq!((down.state, down.reason), (Health::Down, Some(Failure::Timeout)));
    assert!(began.elapsed() >= Duration::from_secs_f64(gaps.iter().sum()));
}
