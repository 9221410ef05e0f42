//! Each verb, as people and programs see it.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use lb_userspace::config;

use crate::lab::{Lab, Ran, expect};

const GOOD: &str = r#"schema = 1
[dataplane]
interfaces = ["eth0"]
[[service]]
name = "checkout"
vip = "203.0.113.10"
port = 443
[service.health]
type = "tcp"
[[service.pool]]
name = "v41"
[[service.pool.backend]]
address = "10.0.1.11:8443"
"#;

/// Everything that is shown, in a pipe, as wide as the environment says.
const SHOWN: &[(&str, &[&str])] = &[
    ("status", &["status"]),
    ("get_services", &["get", "services"]),
    ("get_services_wide", &["get", "services", "-o", "wide"]),
    ("get_services_of", &["get", "services", "dns"]),
    ("get_backends", &["get", "backends"]),
    ("get_backends_wide", &["get", "backends", "-o", "wide"]),
    ("get_backends_of", &["get", "backends", "dns"]),
    ("get_flows", &["get", "flows"]),
    ("get_flows_limit", &["get", "flows", "checkout", "--limit", "1"]),
    ("get_events", &["get", "events"]),
    ("get_events_wide", &["get", "events", "-o", "wide"]),
    ("get_events_after", &["get", "events", "--after", "1"]),
    ("get_events_none", &["get", "events", "dns"]),
    ("history", &["history", "checkout"]),
    ("history_wide", &["history", "checkout", "-o", "wide"]),
    ("diff", &["diff", "checkout", "15", "17"]),
    ("diff_same", &["diff", "checkout", "17", "17"]),
    ("diff_no_revision", &["diff", "checkout", "3", "17"]),
    ("undo", &["undo", "checkout", "--reason", "5xx"]),
    ("undo_no_revision", &["undo", "checkout", "--to", "3"]),
    ("explain", &["explain", "--from", "198.51.100.7:40001", "--to", "203.0.113.10:443"]),
    ("explain_wide", &["explain", "--from", "198.51.100.7:40001", "--to", "203.0.113.10:443", "-o", "wide"]),
    ("trace", &["trace", "--host", "198.51.100.7", "--for", "1m"]),
    ("trace_under_way", &["trace", "--port", "1"]),
    ("set_weight", &["set", "weight", "checkout/v41/10.0.1.11:8443", "50"]),
    ("set_weight_same", &["set", "weight", "checkout/v41/10.0.1.11:8443", "100"]),
    ("set_split", &["set", "split", "checkout", "12.5"]),
    ("set_state", &["set", "state", "checkout/10.0.1.11", "drain", "--reason", "kernel update"]),
    ("set_health", &["set", "health", "dns/2001:db8:3::13", "up"]),
    ("rollback", &["rollback", "checkout"]),
    ("rollback_reset", &["rollback", "checkout", "--flows", "reset", "--reason", "5xx"]),
    (
        "fault_add",
        &[
            "fault",
            "add",
            "checkout",
            "--reset",
            "5",
            "--for",
            "30s",
            "--pool",
            "v42",
            "--from",
            "10.1.0.0/16",
        ],
    ),
    ("fault_list", &["fault", "list"]),
    ("fault_clear", &["fault", "clear", "1"]),
    ("fault_delay", &["fault", "add", "checkout", "--delay", "100ms", "--for", "30s"]),
    ("detach", &["detach"]),
    ("apply", &["apply", "-f", "good.toml"]),
    ("apply_dry_run", &["apply", "-f", "good.toml", "--dry-run", "--expect-revision", "17"]),
    ("apply_same", &["apply", "-f", "good.toml", "--reason", "nothing"]),
    ("apply_conflict", &["apply", "-f", "good.toml", "--expect-revision", "16"]),
    ("apply_missing", &["apply", "-f", "missing.toml"]),
    ("validate", &["validate", "good.toml"]),
    ("no_service", &["set", "split", "chekout", "10"]),
    ("no_canary", &["set", "split", "dns", "10"]),
    ("no_backend", &["set", "weight", "checkout/v41/10.0.1.13:8443", "10"]),
    ("no_backend_of_service", &["set", "weight", "checkout/10.0.1.13", "10"]),
    ("no_pool", &["set", "state", "checkout/v43/10.0.1.11", "ready"]),
    ("rollback_no_service", &["rollback", "chekout"]),
    ("usage_verb", &["rollbak", "checkout"]),
    ("usage_target", &["set", "weight", "checkout", "10"]),
    ("usage_weight", &["set", "weight", "checkout/10.0.1.11", "65536"]),
    ("usage_weight_step", &["set", "weight", "checkout/10.0.1.11", "+1"]),
    ("usage_what", &["get", "pods"]),
    ("usage_none", &["get", "--output", "table"]),
    ("usage_missing", &["set", "split", "checkout"]),
    ("usage_split", &["set", "split", "checkout", "101"]),
    ("usage_end", &["explain", "--from", "198.51.100.7", "--to", "203.0.113.10"]),
    ("usage_state", &["set", "state", "checkout/10.0.1.11", "mant"]),
    ("help", &["--help"]),
    ("help_code", &["help", "LB0503"]),
    ("help_event", &["help", "backend_down"]),
    ("help_unknown", &["help", "LB9999"]),
    ("help_verb", &["help", "set", "state"]),
    ("help_fault", &["fault", "add", "--help"]),
    ("help_status", &["status", "--help"]),
    ("top_in_a_pipe", &["top"]),
];

/// What is no table: sentences and usages, which a terminal breaks.
const AS_LONG_AS_THEY_ARE: &[&str] = &["trace", "rollback", "help_fault"];

fn lab() -> Lab {
    let lab = Lab::new();
    lab.file("good.toml", GOOD);
    lab.file("doubtful.toml", &GOOD.replace("port = 443", "port = 443\ntable_size = 53"));
    lab.file("bad.toml", &GOOD.replace("port = 443", "prot = 443").replace("10.0.1.11:8443", "10.0.1.300"));
    lab
}

#[test]
fn every_verb_is_shown_well_at_80_and_160_columns() {
    let lab = lab();
    let mut wrong = Vec::new();
    for (name, arguments) in SHOWN {
        let mut transcript = format!("$ lbctl {}\n", arguments.join(" "));
        for columns in ["80", "160"] {
            let output = lab.lbctl(arguments).env("COLUMNS", columns).output().unwrap();
            let ran: Ran = output.into();
            if let Some(long) = ran.out.lines().find(|line| line.chars().count() > 80)
                && columns == "80"
                && !AS_LONG_AS_THEY_ARE.iter().any(|it| name.starts_with(it))
                && !name.ends_with("wide")
            {
                wrong.push(format!("{name}: longer than 80 columns: {long}"));
            }
            let ran = lab.transcript(&ran);
            transcript += &format!("-- {columns} columns:\n{ran}");
        }
        wrong.extend(expect(name, &transcript).err());
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_answer_is_json_if_asked_for_and_says_its_version() {
    let lab = lab();
    let mut wrong = Vec::new();
    for (name, arguments) in SHOWN {
        if name.ends_with("wide")
            || name.starts_with("usage")
            || ["help", "help_verb", "help_fault", "help_status"].contains(name)
        {
            continue;
        }
        let ran = lab.run(&[*arguments, &["-o", "json"]].concat());
        // What fails is told as JSON as well, on the side of the errors.
        let document = if ran.out.is_empty() { &ran.err } else { &ran.out };
        let events = name.starts_with("get_events") || *name == "trace";
        for line in if events { document.lines().collect() } else { vec![document.as_str()] } {
            let value: serde_json::Value =
                serde_json::from_str(line).unwrap_or_else(|error| panic!("{name}: {error}: {ran:?}"));
            assert_eq!(value["api"], "v1", "{name}: {value}");
        }
        let transcript = format!("$ lbctl {} -o json\n{}", arguments.join(" "), lab.transcript(&ran));
        wrong.extend(expect(&format!("{name}_json"), &transcript).err());
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn help_of_a_verb_is_about_the_verb_and_its_examples_come_first() {
    let lab = Lab::without_agent();
    for arguments in [&["detach", "--help"][..], &["help", "detach"]] {
        let help = lab.run(arguments).out;
        assert!(help.lines().count() < 15 && !help.contains("--socket <PATH>"), "{help}");
        assert!(help.find("Examples:") < help.find("Options:"), "{help}");
        assert!(help.ends_with("is in `lbctl --help`\n"), "{help}");
    }
    for arguments in [&["--help"][..], &["help"]] {
        assert!(lab.run(arguments).out.contains("--socket <PATH>"));
    }
}

#[test]
fn arguments_that_make_no_sense_are_told_to_programs_as_well() {
    let lab = Lab::without_agent();
    let ran = lab.run(&["set", "weight", "checkout/10.0.1.11", "+1", "-o", "json"]);
    let error: serde_json::Value = serde_json::from_str(&ran.err).unwrap();
    assert_eq!((&error["code"], ran.exit), (&"LB0615".into(), 2));
    assert_eq!(error["remedy"], "`lbctl set weight --help` says what it takes");
    let message = error["message"].as_str().unwrap();
    assert!(message.ends_with("a weight is absolute: `1`, not `+1`"), "{message}");
}

#[test]
fn a_pipe_of_unknown_width_leaves_no_column_out() {
    let lab = lab();
    let ran = lab.run(&["get", "backends"]);
    assert!(
        ran.out.starts_with(
            "SERVICE   POOL  BACKEND                WEIGHT  STATE  HEALTH  SLOTS  FLOWS  NOTE\n"
        ),
        "{}",
        ran.out
    );
}

#[test]
fn shorthands_reach_the_agent_in_full_with_their_reason() {
    let lab = lab();
    lab.run(&["set", "state", "checkout/10.0.1.11", "maint", "--reason", "disk"]);
    lab.run(&["set", "weight", "dns/main/[2001:db8:3::13]:53", "0"]);
    lab.run(&["rollback", "checkout", "--flows", "reset", "--reason", "5xx"]);
    lab.run(&["undo", "checkout", "--to", "16", "--reason", "slow"]);
    assert_eq!(
        lab.calls(),
        [
            "state checkout/v41/10.0.1.11:8443 maint Some(\"disk\")",
            "weight dns/main/[2001:db8:3::13]:53 0",
            "rollback checkout reset Some(\"5xx\")",
            "undo checkout Some(16) Some(\"slow\")",
        ]
    );
}

#[test]
fn the_agent_knows_who_asked() {
    let lab = lab();
    let child = lab.lbctl(&["detach"]).stdout(std::process::Stdio::null()).spawn().unwrap();
    let pid = i32::try_from(child.id()).unwrap();
    assert!(child.wait_with_output().unwrap().status.success());
    let (actor, _) = lab.agent.calls.lock().unwrap()[0].clone();
    // SAFETY: neither takes an argument or can fail.
    let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
    assert_eq!((actor.uid, actor.gid, actor.pid), (uid, gid, Some(pid)));
}

#[test]
fn exit_codes_are_those_of_the_contract() {
    let lab = lab();
    let exit = |arguments: &[&str]| lab.run(arguments).exit;
    assert_eq!(exit(&["status"]), 3);
    assert_eq!(exit(&["get", "services"]), 0);
    assert_eq!(exit(&["set", "split", "nothing", "5"]), 1);
    assert_eq!(exit(&["set", "split", "checkout", "much"]), 2);
    assert_eq!(exit(&["apply", "-f", "good.toml", "--expect-revision", "3"]), 5);
    assert_eq!(exit(&["status", "--wait", "--timeout", "300ms"]), 4);
    assert_eq!(exit(&["status", "--timeout", "5s"]), 3);
    assert_eq!(exit(&["rollout", "status", "checkout", "--timeout", "5s"]), 3);
    assert_eq!(exit(&["get", "services", "--socket", "/nonexistent/lbd.sock"]), 6);
    // Every place is an option of every verb.
    assert_eq!(exit(&["--config", "/nonexistent/lb.toml", "get", "services", "--metrics", "127.0.0.1:1"]), 0);
    assert_eq!(exit(&["rollback", "checkout", "--socket", "/nonexistent/lbd.sock"]), 6);
    lab.agent.degraded.store(false, Ordering::Relaxed);
    assert_eq!(exit(&["status"]), 0);
    assert_eq!(exit(&["status", "--timeout", "5s"]), 0);
    assert_eq!(exit(&["status", "--wait=healthy", "--timeout", "300ms"]), 0);
    assert_eq!(exit(&["status", "--wait", "--timeout", "300ms"]), 0);
    assert_eq!(exit(&["status", "--wait=settled", "--timeout", "300ms"]), 4);
    lab.agent.unsettled.store(0, Ordering::Relaxed);
    assert_eq!(exit(&["status", "--wait=settled", "--timeout", "300ms"]), 0);
}

#[test]
fn an_agent_that_is_not_there_is_named_with_the_way_out() {
    let mut lab = Lab::without_agent();
    let ran = lab.run(&["get", "services"]);
    expect("unreachable", &lab.transcript(&ran)).unwrap();
    // A socket that a killed agent left behind.
    drop(std::os::unix::net::UnixListener::bind(lab.socket()).unwrap());
    let ran = lab.run(&["get", "services"]);
    expect("unreachable_stale", &lab.transcript(&ran)).unwrap();
    lab.start();
    assert_eq!(lab.run(&["get", "services"]).exit, 0);
}

#[test]
fn status_waits_for_an_agent_that_starts() {
    let mut lab = Lab::without_agent();
    lab.agent.degraded.store(false, Ordering::Relaxed);
    lab.agent.starting.store(true, Ordering::Relaxed);
    let child = lab
        .lbctl(&["status", "--wait=healthy", "--timeout", "20s", "-o", "json"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(300));
    lab.start();
    std::thread::sleep(Duration::from_millis(300));
    lab.agent.starting.store(false, Ordering::Relaxed);
    let waited = Instant::now();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert!(waited.elapsed() < Duration::from_secs(5));
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(status["degraded"], false);
}

#[test]
fn mistakes_are_shown_in_the_lines_of_the_file_and_change_nothing() {
    let lab = lab();
    let ran = lab.run(&["apply", "-f", "bad.toml"]);
    let bad = std::fs::read_to_string(lab.directory().join("bad.toml")).unwrap();
    let shown = config::parse(&bad, "bad.toml").unwrap_err().render(config::Style::Plain);
    assert!(ran.err.starts_with(&shown), "{}", ran.err);
    assert_eq!((ran.exit, lab.calls().len()), (1, 0));
    assert!(ran.err.ends_with("\nnothing was changed\n"), "{}", ran.err);
    let ran = lab.run(&["validate", "bad.toml"]);
    assert_eq!((ran.out.as_str(), ran.err.as_str(), ran.exit), ("", shown.as_str(), 1));
    let ran = lab.run(&["validate", "bad.toml", "-o", "json"]);
    let answer: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(
        (&answer["valid"], &answer["diagnostics"][1]["line"], ran.exit),
        (&false.into(), &7.into(), 1)
    );
    let ran = lab.run(&["apply", "-f", "bad.toml", "-o", "json"]);
    let error: serde_json::Value = serde_json::from_str(&ran.err).unwrap();
    assert_eq!(error["code"], "LB0510");
    assert_eq!(error["diagnostics"][1]["line"], 7);
}

#[test]
fn what_is_doubtful_is_shown_and_applied() {
    let lab = lab();
    let doubtful = std::fs::read_to_string(lab.directory().join("doubtful.toml")).unwrap();
    let shown = config::parse(&doubtful, "doubtful.toml").unwrap().warnings.render(config::Style::Plain);
    assert!(!shown.is_empty());
    let ran = lab.run(&["validate", "doubtful.toml"]);
    assert_eq!(
        (ran.out.as_str(), ran.err.as_str(), ran.exit),
        ("doubtful.toml is valid: 1 service, 1 pool, 1 backend\n", shown.as_str(), 0)
    );
    let ran = lab.run(&["apply", "-f", "doubtful.toml"]);
    assert!(ran.err.starts_with(&shown) && ran.exit == 0, "{}", ran.err);
    let ran = lab.run(&["apply", "-f", "doubtful.toml", "-o", "json"]);
    let applied: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(applied["diagnostics"][0]["severity"], "warning");
}

#[test]
fn a_configuration_may_come_by_standard_input() {
    let lab = lab();
    let file = std::fs::File::open(lab.directory().join("good.toml")).unwrap();
    let output = lab.lbctl(&["validate", "-"]).stdin(file).output().unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "standard input is valid: 1 service, 1 pool, 1 backend\n"
    );
}

#[test]
fn validate_needs_no_agent() {
    let lab = Lab::without_agent();
    lab.file("good.toml", GOOD);
    let ran = lab.run(&["validate", "good.toml"]);
    assert_eq!((ran.out.as_str(), ran.exit), ("good.toml is valid: 1 service, 1 pool, 1 backend\n", 0));
}

#[test]
fn colours_are_for_those_who_ask_for_them_in_a_pipe() {
    let lab = lab();
    let plain = lab.run(&["get", "backends"]).out;
    assert!(!plain.contains('\u{1b}'));
    let forced = lab.lbctl(&["get", "backends"]).env("CLICOLOR_FORCE", "1").output().unwrap();
    let coloured = String::from_utf8(forced.stdout).unwrap();
    assert!(coloured.contains("\u{1b}["));
    assert_eq!(anstream::adapter::strip_str(&coloured).to_string(), plain);
}

#[test]
fn completions_and_manual_know_every_verb() {
    let lab = Lab::without_agent();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let ran = lab.run(&["completions", shell]);
        assert!(ran.exit == 0 && ran.out.contains("rollback"), "{shell}");
    }
    let man = lab.run(&["man"]).out;
    assert!(man.starts_with(".ie \\n(.g .ds Aq \\(aq") && man.contains(".SH SUBCOMMANDS"), "{man}");
    let pages = lab.directory().join("man");
    std::fs::create_dir(&pages).unwrap();
    assert_eq!(lab.run(&["man", "--to", "man"]).exit, 0);
    for page in ["lbctl.1", "lbctl-rollback.1", "lbctl-set-weight.1"] {
        assert!(pages.join(page).exists(), "{page}");
    }
    let ran = lab.run(&["man", "--to", "nowhere"]);
    assert_eq!(ran.exit, 1);
    assert!(
        ran.err.starts_with("error[LB0604]: cannot write the manual: cannot write the manual to nowhere: "),
        "{}",
        ran.err
    );
}

#[test]
fn a_reader_that_has_enough_is_no_failure() {
    let lab = lab();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = lab.lbctl(&["status"]).stdout(writer).output().unwrap();
    assert_eq!((output.stderr.as_slice(), output.status.code()), (b"".as_slice(), Some(0)));
}
