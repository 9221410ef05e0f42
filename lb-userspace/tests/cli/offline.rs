//! Rolling back and detaching past an agent that is not there or does not answer.

use std::ffi::OsString;
use std::io::{self, Write};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use lb_userspace::api::{ApiError, Detached, KeepOrReset, RolledBack};
use lb_userspace::cli::{self, Exit, Offline, Places, Screen};
use lb_userspace::offline::NoNames;

use crate::lab::Lab;

/// Maps that are made up.
#[derive(Default)]
struct Maps {
    calls: Mutex<Vec<String>>,
    missing: bool,
    /// Whether no journal names services.
    nameless: bool,
    /// Whether the disk of the journal is full.
    full: bool,
}

impl Offline for Maps {
    fn rollback(
        &self,
        places: &Places,
        service: &str,
        flows: KeepOrReset,
        reason: Option<String>,
    ) -> anyhow::Result<RolledBack> {
        anyhow::ensure!(!self.missing, "there is no data path pinned in {}", places.pin_dir.display());
        if self.nameless {
            return Err(
                NoNames(format!("the journal in {} names no services", places.state_dir.display())).into()
            );
        }
        if service != "checkout" {
            return Err(ApiError::no_service(service, ["checkout"]).into());
        }
        self.calls.lock().unwrap().push(format!(
            "{service} {flows} {reason:?} {} {}",
            places.pin_dir.display(),
            places.state_dir.display()
        ));
        Ok(RolledBack {
            service: service.to_owned(),
            split_before_percent: 12.5,
            flows,
            store_seconds: 310e-9,
            total_seconds: 842e-6,
            revision: (!self.full).then_some(18),
            warnings: self
                .full
                .then(|| "it is not in the journal: No space left".to_owned())
                .into_iter()
                .collect(),
            ..RolledBack::default()
        })
    }

    fn detach(&self, places: &Places) -> anyhow::Result<Detached> {
        anyhow::ensure!(!self.missing, "there is no data path pinned in {}", places.pin_dir.display());
        self.calls.lock().unwrap().push("detach".to_owned());
        Ok(Detached { removed: vec!["the program on eth0".to_owned()], ..Detached::default() })
    }
}

#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl Write for Written {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Written {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

/// `lbctl` in this process, with maps that are made up.
fn lbctl(lab: &Lab, maps: &Maps, arguments: &[&str]) -> (String, String, Exit) {
    let (out, err) = (Written::default(), Written::default());
    let socket = lab.socket();
    let all = ["lbctl", "--pin-dir", "/pins", "--state-dir", "/state", "--socket"].map(OsString::from);
    let all = all.into_iter().chain([socket.into()]).chain(arguments.iter().map(OsString::from));
    let exit = cli::run(all, Screen::plain(out.clone(), err.clone()), maps);
    let err = err.text().replace(&lab.directory().display().to_string(), "DIR");
    (out.text(), err, exit)
}

#[test]
fn without_an_agent_the_maps_are_changed_directly() {
    let (lab, maps) = (Lab::without_agent(), Maps::default());
    let (out, err, exit) =
        lbctl(&lab, &maps, &["rollback", "checkout", "--flows", "reset", "--reason", "5xx"]);
    assert_eq!(
        out,
        "canary of checkout: 12.5 % -> 0 % in 310 ns (store), 842 µs from request to store; tracked flows are reset\n"
    );
    assert_eq!(
        err,
        "cannot reach the agent on DIR/lbd.sock: No such file or directory (os error 2); \
         rolled back without it, through the maps under /pins\n"
    );
    assert_eq!(exit, Exit::Done);
    assert_eq!(*maps.calls.lock().unwrap(), ["checkout reset Some(\"5xx\") /pins /state"]);
}

#[test]
fn a_rollback_that_the_journal_does_not_have_says_so_and_its_json_stays_json() {
    let (lab, maps) = (Lab::without_agent(), Maps { full: true, ..Maps::default() });
    let (_, err, exit) = lbctl(&lab, &maps, &["rollback", "checkout"]);
    assert!(err.ends_with("\nwarning: it is not in the journal: No space left\n"), "{err}");
    assert_eq!(exit, Exit::Done);
    let (out, err, _) = lbctl(&lab, &maps, &["rollback", "checkout", "-o", "json"]);
    let done: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&done["revision"], err.as_str()), (&serde_json::Value::Null, ""));
    assert_eq!(done["warnings"], serde_json::json!(["it is not in the journal: No space left"]));
}

#[test]
fn an_agent_that_hangs_is_not_waited_for() {
    let (lab, maps) = (Lab::new(), Maps::default());
    lab.agent.hanging.store(true, Ordering::Relaxed);
    let start = Instant::now();
    let (_, err, exit) = lbctl(&lab, &maps, &["rollback", "checkout"]);
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    assert!(
        err.starts_with("the agent on DIR/lbd.sock did not answer within 500 ms; rolled back without it"),
        "{err}"
    );
    assert_eq!((exit, maps.calls.lock().unwrap().len()), (Exit::Done, 1));
}

#[test]
fn an_agent_that_cannot_is_gone_past_and_one_that_refuses_is_not() {
    let (lab, maps) = (Lab::new(), Maps::default());
    let (out, err, exit) = lbctl(&lab, &maps, &["rollback", "chekout"]);
    assert_eq!((out.as_str(), exit, maps.calls.lock().unwrap().len()), ("", Exit::Failed, 0));
    assert!(err.contains("did you mean `checkout`?"), "{err}");

    lab.agent.starting.store(true, Ordering::Relaxed);
    let (_, err, exit) = lbctl(&lab, &maps, &["rollback", "checkout"]);
    assert!(err.starts_with("the agent is adopting its maps (LB0515)"), "{err}");
    assert_eq!((exit, maps.calls.lock().unwrap().len()), (Exit::Done, 1));
}

#[test]
fn if_neither_way_works_both_reasons_are_told() {
    let (lab, maps) = (Lab::without_agent(), Maps { missing: true, ..Maps::default() });
    for verb in [["rollback", "checkout"].as_slice(), &["detach"]] {
        let (out, err, exit) = lbctl(&lab, &maps, verb);
        assert_eq!((out.as_str(), exit), ("", Exit::Unreachable));
        assert_eq!(
            err,
            format!(
                "error[LB0606]: cannot {}: cannot reach the agent on DIR/lbd.sock: No such file or directory (os error 2); \
                 and without it: there is no data path pinned in /pins\n  \
                 help: without the agent it takes root, and the maps under /pins (--pin-dir or LB_PIN_DIR)\n",
                verb.join(" ").replace("rollback", "roll back"),
            )
        );
    }
}

#[test]
fn without_an_agent_a_mistyped_service_is_told_what_was_meant() {
    let (lab, maps) = (Lab::without_agent(), Maps::default());
    let (out, err, exit) = lbctl(&lab, &maps, &["rollback", "chekout"]);
    assert_eq!((out.as_str(), exit), ("", Exit::Failed));
    assert_eq!(
        err,
        "error[LB0503]: cannot roll back chekout: there is no service `chekout`\n  help: did you mean `checkout`?\n"
    );
}

#[test]
fn without_names_of_services_the_place_of_the_journal_is_asked_for() {
    let (lab, maps) = (Lab::without_agent(), Maps { nameless: true, ..Maps::default() });
    let (out, err, exit) = lbctl(&lab, &maps, &["rollback", "checkout"]);
    assert_eq!((out.as_str(), exit), ("", Exit::Unreachable));
    assert_eq!(
        err,
        "error[LB0606]: cannot roll back checkout: cannot reach the agent on DIR/lbd.sock: No such file or directory (os error \
         2); and without it: the journal in /state names no services\n  help: without the agent, the journal in /state tells \
         services by name: name its place with --state-dir or LB_STATE_DIR\n"
    );
    // With what there really is.
    let ran = lab.run(&["rollback", "checkout"]);
    assert!(
        ran.err.contains("cannot read the journal ") && ran.err.matches("(os error 2)").count() == 2,
        "{}",
        ran.err
    );
    assert!(ran.err.contains("--state-dir"), "{}", ran.err);
    assert_eq!(ran.exit, 6);
}

#[test]
fn an_agent_that_is_there_does_it_alone() {
    let (lab, maps) = (Lab::new(), Maps::default());
    let (out, err, exit) = lbctl(&lab, &maps, &["rollback", "checkout"]);
    assert_eq!(
        out,
        "canary of checkout: 10 % -> 0 % in 41 µs (store), 1.2 ms from request to store; 3 tracked flows finish where they are\n"
    );
    assert_eq!((err.as_str(), exit), ("", Exit::Done));
    let (out, _, exit) = lbctl(&lab, &maps, &["detach"]);
    assert_eq!(
        (out.as_str(), exit),
        ("removed the program on eth0\nremoved /sys/fs/bpf/lb/v1\n", Exit::Done)
    );
    assert_eq!(lab.calls(), ["rollback checkout keep None", "detach"]);
    assert!(maps.calls.lock().unwrap().is_empty());
}

#[test]
fn without_an_agent_detach_takes_everything_off_itself() {
    let (lab, maps) = (Lab::without_agent(), Maps::default());
    let (out, err, exit) = lbctl(&lab, &maps, &["detach", "-o", "json"]);
    let removed: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(removed, serde_json::json!({"api": "v1", "removed": ["the program on eth0"], "left": []}));
    assert_eq!((err.as_str(), exit), ("", Exit::Done));
}
