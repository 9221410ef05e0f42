//! Following lists and events as they change.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Stdio};
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::Duration;

use lb_userspace::api::{Event, Severity};

use crate::agent::event;
use crate::lab::Lab;

/// A process whose lines are read as they come. It ends with this.
struct Following {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Following {
    fn start(lab: &Lab, arguments: &[&str]) -> Self {
        let mut child = lab.lbctl(arguments).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let lines = read(child.stdout.take().unwrap());
        Self { child, lines }
    }

    fn line(&self) -> String {
        self.lines.recv_timeout(Duration::from_secs(10)).expect("a line within ten seconds")
    }

    fn is_silent(&self) -> bool {
        self.lines.recv_timeout(Duration::from_millis(1_500)).is_err()
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn read(out: ChildStdout) -> mpsc::Receiver<String> {
    let (lines, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(out).lines() {
            if line.is_err() || lines.send(line.unwrap_or_default()).is_err() {
                return;
            }
        }
    });
    receiver
}

#[test]
fn rows_that_change_are_appended_in_a_pipe() {
    let lab = Lab::new();
    let following = Following::start(&lab, &["get", "backends", "checkout", "-w"]);
    let first: Vec<String> = (0..4).map(|_| following.line()).collect();
    assert_eq!(first[1], "checkout  v41   10.0.1.11:8443       100  ready  up       8190      3");
    assert!(following.is_silent());
    lab.agent.flows.store(4, Ordering::Relaxed);
    assert_eq!(following.line(), "checkout  v41   10.0.1.11:8443       100  ready  up       8190      4");
    assert!(following.is_silent());
}

#[test]
fn states_that_differ_are_lines_of_json() {
    let lab = Lab::new();
    let following = Following::start(&lab, &["get", "services", "-w", "-o", "json"]);
    let settled = |line: String| {
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        value["services"][0]["split"]["settled"].clone()
    };
    assert_eq!(settled(following.line()), false);
    lab.agent.unsettled.store(0, Ordering::Relaxed);
    assert_eq!(settled(following.line()), true);
}

#[test]
fn events_come_as_they_happen_and_none_is_lost_when_the_agent_restarts() {
    let mut lab = Lab::new();
    let following = Following::start(&lab, &["get", "events", "checkout", "-w", "-o", "json"]);
    let number = |line: String| {
        let event: Event = serde_json::from_str(&line).unwrap();
        event.seq
    };
    let of = |service: &str| Event { service: Some(service.to_owned()), ..event(Severity::Info) };
    assert_eq!([number(following.line()), number(following.line())], [1, 2]);
    // Of another service.
    lab.agent.happens(of("dns"));
    lab.agent.happens(of("checkout"));
    assert_eq!(number(following.line()), 4);

    lab.stop();
    lab.agent.happens(of("checkout"));
    lab.start();
    assert_eq!(number(following.line()), 5);
    lab.agent.happens(of("checkout"));
    assert_eq!(number(following.line()), 6);
}

#[test]
fn a_list_is_followed_across_a_restart_of_the_agent() {
    let mut lab = Lab::new();
    let following = Following::start(&lab, &["get", "services", "dns", "-w", "-o", "json"]);
    following.line();
    let following_all = Following::start(&lab, &["get", "services", "-w", "-o", "json"]);
    following_all.line();
    lab.stop();
    lab.agent.unsettled.store(0, Ordering::Relaxed);
    lab.start();
    assert!(following_all.line().contains("\"settled\":true"));
    assert!(following.is_silent());
}

#[test]
fn every_list_can_be_followed() {
    let lab = Lab::new();
    for what in ["services", "backends", "flows", "events"] {
        for format in ["table", "wide", "json"] {
            let following = Following::start(&lab, &["get", what, "--watch", "-o", format]);
            let first = following.line();
            match format {
                "json" => {
                    assert!(serde_json::from_str::<serde_json::Value>(&first).is_ok(), "{what}: {first}")
                }
                _ => assert!(first.contains("SERVICE") || first.contains("TIME"), "{what}: {first}"),
            }
        }
    }
}
