//! Commands of the operator.

use std::{
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use lb_userspace::health::{
    Check, CheckKind, Command, Failure, Health, Hooks, Miss, ProbeResult, Scheduler, Trouble, probe,
};
use tokio::{sync::mpsc, time::sleep};

use crate::support::{next, target, timing};

fn sh(script: &str) -> Command {
    Command {
        program: "/bin/sh".into(),
        arguments: vec!["-c".to_owned(), script.to_owned()],
        environment: vec![("LB_SERVICE", "shop".to_owned()), ("LB_BACKEND", "10.0.1.11:80".to_owned())],
    }
}

fn exec(command: Command) -> Check {
    Check { kind: CheckKind::Exec(Arc::new(command)), timing: timing(1000, 500, 1, 1) }
}

async fn run(command: Command) -> ProbeResult {
    probe(([127, 0, 0, 1], 1).into(), &exec(command), None).await
}

#[tokio::test]
async fn only_exit_0_is_healthy() {
    assert_eq!(run(sh("exit 0")).await.outcome, Ok(()));
    assert_eq!(run(sh("exit 3")).await.outcome, Err(Miss::Failed(Failure::Exit(3))));
    assert_eq!(run(sh("kill -9 $$")).await.outcome, Err(Miss::Failed(Failure::Signal(9))));
    assert_eq!(run(sh("exec cat")).await.outcome, Ok(()), "its input is empty");
    let chatty = sh("dd if=/dev/zero bs=1M count=4 2>&1");
    assert_eq!(
        run(chatty).await.outcome,
        Ok(()),
        "nobody reads what it prints, and it does not wait for that"
    );
}

#[tokio::test]
async fn the_environment_is_what_the_check_says_and_nothing_else() {
    let script = r#"[ "$LB_SERVICE $LB_BACKEND" = "shop 10.0.1.11:80" ] && ! env | grep -vE "^(LB_|PATH=|PWD=|SHLVL=|_=)""#;
    assert_eq!(run(sh(script)).await.outcome, Ok(()));
}

#[tokio::test]
async fn a_command_that_is_not_there_says_nothing_about_the_target() {
    let absent = Command { program: "/nonexistent/check".into(), ..sh("") };
    let expected = Trouble::Command(std::io::ErrorKind::NotFound);
    assert_eq!(run(absent).await.outcome, Err(Miss::NotRun(expected)));
}

#[tokio::test]
async fn at_the_timeout_the_whole_process_group_is_killed() {
    let directory = tempfile::tempdir().expect("a directory");
    let pids = directory.path().join("pids");
    let result = run(sh(&format!("sleep 3600 & echo $$ $! > {}; wait", pids.display()))).await;
    assert_eq!(result.outcome, Err(Miss::Failed(Failure::Timeout)));
    assert!(result.duration < Duration::from_secs(10), "{:?}", result.duration);
    wait_for_the_end_of(&pids).await;
}

#[tokio::test]
async fn a_target_that_is_removed_takes_its_command_with_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let pids = directory.path().join("pids");
    let (events, _received) = mpsc::channel(1);
    let scheduler = Scheduler::new(events);
    let check = exec(sh(&format!("sleep 3600 & echo $$ $! > {}; wait", pids.display())));
    scheduler.update(vec![target(1, ([127, 0, 0, 1], 1).into(), check)]);
    while !fs::read_to_string(&pids).is_ok_and(|text| text.ends_with('\n')) {
        sleep(Duration::from_millis(5)).await;
    }
    drop(scheduler);
    wait_for_the_end_of(&pids).await;
}

/// Until none of the processes in the file is there, or only as a zombie that waits for its new parent.
async fn wait_for_the_end_of(pids: &Path) {
    let pids = fs::read_to_string(pids).expect("it was started");
    let alive = |pid: &str| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.lines().any(|line| line.starts_with("State:") && !line.contains('Z'))
    };
    assert_eq!(pids.split_whitespace().count(), 2, "{pids}");
    let deadline = Instant::now() + Duration::from_secs(2);
    while pids.split_whitespace().any(alive) {
        assert!(Instant::now() < deadline, "still there: {pids}");
        sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_command_can_be_a_check() {
    let directory = tempfile::tempdir().expect("a directory");
    let flag = directory.path().join("healthy");
    fs::write(&flag, "").expect("it can be written");
    let (events, mut received) = mpsc::channel(4);
    let scheduler = Scheduler::new(events);
    let check = Check { timing: timing(50, 40, 1, 2), ..exec(sh(&format!("test -e {}", flag.display()))) };
    scheduler.update(vec![target(1, ([127, 0, 0, 1], 1).into(), check)]);
    assert_eq!(next(&mut received).await.state, Health::Up);
    fs::remove_file(&flag).expect("it is there");
    let event = next(&mut received).await;
    assert_eq!((event.state, event.reason), (Health::Down, Some(Failure::Exit(1))));
}

#[tokio::test]
async fn hooks_run_at_once_and_no_more_than_ten_of_a_service() {
    let directory = tempfile::tempdir().expect("a directory");
    let of = |service| directory.path().join(service);
    let mut hooks = Hooks::default();
    let started = Instant::now();
    for _ in 0..15 {
        for service in ["shop", "mail"] {
            hooks.run(service, sh(&format!("echo ran; echo $LB_BACKEND >> {}", of(service).display())));
        }
    }
    assert!(started.elapsed() < Duration::from_secs(1), "nobody waits for them");
    let runs = |service| fs::read_to_string(of(service)).unwrap_or_default().lines().count();
    while runs("shop") < 10 || runs("mail") < 10 {
        assert!(started.elapsed() < Duration::from_secs(10), "{} and {} runs", runs("shop"), runs("mail"));
        sleep(Duration::from_millis(10)).await;
    }
    sleep(Duration::from_millis(200)).await;
    assert_eq!((runs("shop"), runs("mail")), (10, 10));
}
