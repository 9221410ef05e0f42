//! The API as any HTTP client meets it.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use lb_userspace::api::Severity;
use serde_json::{Value, json};

use crate::agent::event;
use crate::lab::Lab;

/// Status and body of one request on a connection of its own.
fn ask(lab: &Lab, method: &str, path: &str, body: &str) -> (u16, Value) {
    let mut stream = UnixStream::connect(lab.socket()).unwrap();
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    )
    .unwrap();
    answer(stream)
}

fn answer(mut stream: UnixStream) -> (u16, Value) {
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let body = serde_json::from_str(body).unwrap_or(Value::String(body.to_owned()));
    (status, body)
}

#[test]
fn a_request_without_a_content_type_is_served() {
    let lab = Lab::new();
    let (status, body) = ask(&lab, "PUT", "/v1/services/checkout/split", r#"{"percent": "12.5"}"#);
    assert_eq!((status, &body["api"], &body["revision"]), (200, &json!("v1"), &json!(18)));
    assert_eq!(lab.calls(), ["split checkout 12.5"]);
}

#[test]
fn a_rollback_needs_no_body() {
    let lab = Lab::new();
    let (status, body) = ask(&lab, "POST", "/v1/services/checkout/rollback", "");
    assert_eq!((status, &body["flows"], &body["by_agent"]), (200, &json!("keep"), &json!(true)));
}

#[test]
fn names_with_brackets_are_one_segment() {
    let lab = Lab::new();
    let path = "/v1/services/dns/pools/main/backends/%5B2001:db8:3::13%5D:53/weight";
    assert_eq!(ask(&lab, "PUT", path, r#"{"weight": 7}"#).0, 200);
    assert_eq!(lab.calls(), ["weight dns/main/[2001:db8:3::13]:53 7"]);
}

#[test]
fn what_cannot_be_understood_is_refused_with_its_reason() {
    let lab = Lab::new();
    let split = "/v1/services/checkout/split";
    for (method, path, body, status, code, message) in [
        ("PUT", split, "{", 400, "LB0501", "the body is not JSON: "),
        (
            "PUT",
            split,
            r#"{"percent": 5, "persent": 5}"#,
            422,
            "LB0511",
            "the body does not say what is needed: unknown field `persent`",
        ),
        (
            "PUT",
            split,
            r#"{"percent": 101}"#,
            422,
            "LB0511",
            "the body does not say what is needed: 101: outside the range",
        ),
        ("PUT", split, "", 422, "LB0511", "the body does not say what is needed: missing field `percent`"),
        (
            "PUT",
            "/v1/services/checkout/pools/v41/backends/10.0.1.11:8443/weight",
            r#"{"weight": 65536}"#,
            422,
            "LB0511",
            "the body does not say",
        ),
        (
            "PUT",
            "/v1/services/checkout/pools/v41/backends/10.0.1.11:8443/state",
            r#"{"state": "mant"}"#,
            422,
            "LB0511",
            "the body does not say",
        ),
        ("GET", "/v1/flows?limit=x", "", 400, "LB0501", ""),
        ("GET", "/v1/flows?limits=5", "", 400, "LB0501", ""),
        ("GET", "/v2/status", "", 404, "LB0502", "the API has no /v2/status"),
        ("POST", "/v1/status", "", 405, "LB0506", "/v1/status does not take POST"),
        ("GET", "/v1/backends?service=chekout", "", 404, "LB0503", "there is no service `chekout`"),
    ] {
        let (got, error) = ask(&lab, method, path, body);
        assert_eq!((got, error["code"].as_str().unwrap()), (status, code), "{method} {path} {body}: {error}");
        assert!(error["message"].as_str().unwrap().starts_with(message), "{method} {path} {body}: {error}");
        assert_eq!(error["api"], "v1");
    }
    assert!(lab.calls().is_empty());
}

#[test]
fn a_configuration_is_checked_without_being_applied() {
    let lab = Lab::new();
    let body =
        json!({ "text": "schema = 1\n[dataplane]\ninterfaces = [\"eth0\"]\nflows = 0\n", "name": "lb.toml" });
    let (status, answer) = ask(&lab, "POST", "/v1/validate", &body.to_string());
    assert_eq!((status, &answer["valid"]), (200, &json!(false)));
    let found = &answer["diagnostics"][0];
    assert_eq!(
        (&found["code"], &found["line"], &found["file"]),
        (&json!("LB0203"), &json!(4), &json!("lb.toml"))
    );
    let (status, error) = ask(&lab, "POST", "/v1/apply", &body.to_string());
    assert_eq!((status, &error["code"]), (422, &json!("LB0510")));
    assert_eq!(error["diagnostics"], answer["diagnostics"]);
    assert!(lab.calls().is_empty());
}

#[test]
fn a_body_beyond_eight_mebibytes_is_refused() {
    let lab = Lab::new();
    let body = |size: usize| json!({ "text": "#".repeat(size), "name": "x" }).to_string();
    assert_eq!(ask(&lab, "POST", "/v1/validate", &body(8_000_000)).0, 200);
    let mut stream = UnixStream::connect(lab.socket()).unwrap();
    let length = 9 << 20;
    write!(
        stream,
        "POST /v1/apply HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n"
    )
    .unwrap();
    let (status, error) = answer(stream);
    assert_eq!((status, &error["code"]), (413, &json!("LB0509")));
}

#[test]
fn events_are_lines_and_follow_on_where_they_are_asked_to() {
    let lab = Lab::new();
    let (status, body) = ask(&lab, "GET", "/v1/events?after=1", "");
    assert_eq!((status, &body["seq"]), (200, &json!(2)));

    let mut stream = UnixStream::connect(lab.socket()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    write!(stream, "GET /v1/events?after=2&follow=true HTTP/1.0\r\n\r\n").unwrap();
    let mut lines = BufReader::new(stream).lines();
    while !lines.next().unwrap().unwrap().is_empty() {}
    lab.agent.happens(event(Severity::Info));
    let event: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    assert_eq!(event["seq"], 3);
}

#[test]
fn a_follower_that_does_not_read_is_dropped_and_others_are_not_held_up() {
    let lab = Lab::new();
    let mut stream = UnixStream::connect(lab.socket()).unwrap();
    write!(stream, "GET /v1/events?follow=true HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    std::thread::sleep(Duration::from_millis(200));
    let long = "x".repeat(100_000);
    let start = Instant::now();
    for _ in 0..100 {
        lab.agent.happens(lb_userspace::api::Event { message: long.clone(), ..event(Severity::Info) });
    }
    assert!(start.elapsed() < Duration::from_secs(1));
    assert_eq!(ask(&lab, "GET", "/v1/services", "").0, 200);
    // What it had been sent is still there; then the stream ends, far from complete.
    let mut rest = Vec::new();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.read_to_end(&mut rest).unwrap_or_default();
    assert!(rest.len() < 100 * long.len(), "{}", rest.len());
}

#[test]
fn a_server_that_stops_ends_those_who_follow_and_takes_its_socket_away() {
    let mut lab = Lab::new();
    let mut stream = UnixStream::connect(lab.socket()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    write!(stream, "GET /v1/events?follow=true HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let mut first = [0; 1];
    stream.read_exact(&mut first).unwrap();
    let start = Instant::now();
    lab.stop();
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    assert!(!lab.socket().exists());
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    assert!(rest.ends_with("0\r\n\r\n"), "the stream ends as a whole");
}

#[test]
fn a_client_that_says_nothing_is_not_in_the_way() {
    let lab = Lab::new();
    let _silent: Vec<UnixStream> = (0..100).map(|_| UnixStream::connect(lab.socket()).unwrap()).collect();
    let start = Instant::now();
    assert_eq!(ask(&lab, "GET", "/v1/status", "").0, 200);
    assert!(start.elapsed() < Duration::from_secs(1));
}

#[test]
fn services_come_in_pages_and_lbctl_puts_them_together() {
    let lab = Lab::new();
    let (_, first) = ask(&lab, "GET", "/v1/services", "");
    assert_eq!((&first["services"][0]["name"], &first["next"]), (&json!("checkout"), &json!("checkout")));
    let (_, last) = ask(&lab, "GET", "/v1/backends?after=checkout&limit=1000", "");
    assert_eq!((&last["backends"][0]["service"], last.get("next")), (&json!("dns"), None));
    for limit in ["0", "1001"] {
        let (status, refused) = ask(&lab, "GET", &format!("/v1/status?limit={limit}"), "");
        assert_eq!((status, &refused["code"]), (422, &json!("LB0511")), "{refused}");
    }

    // In its middle the configuration changes once: then it begins anew.
    for changed in [false, true] {
        lab.agent.changed.store(changed, Ordering::Relaxed);
        let before = lab.agent.pages.load(Ordering::Relaxed);
        let output = lab.lbctl(&["get", "services", "--output", "json"]).output().unwrap();
        let whole: Value = serde_json::from_slice(&output.stdout).unwrap();
        let services = whole["services"].as_array().unwrap().iter();
        let names: Vec<&str> = services.map(|service| service["name"].as_str().unwrap()).collect();
        assert_eq!((names, whole.get("next")), (vec!["checkout", "dns"], None));
        let asked = lab.agent.pages.load(Ordering::Relaxed) - before;
        assert_eq!(asked, if changed { 4 } else { 2 });
    }
}
