//! Single probes.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use lb_userspace::health::{Check, CheckKind, Failure, HttpCheck, Miss, Trouble, probe};

use crate::support::{Reply, deaf, http, listen, serve, tcp, timing};

async fn outcome(address: SocketAddr, check: &Check) -> Result<(), Miss> {
    probe(address, check, None).await.outcome
}

fn failed(failure: Failure) -> Result<(), Miss> {
    Err(Miss::Failed(failure))
}

#[tokio::test]
async fn tcp_tells_a_listener_from_a_closed_port_from_silence() {
    let check = tcp(timing(1000, 200, 1, 1));
    let (listener, open) = listen().await;
    assert_eq!(outcome(open, &check).await, Ok(()));
    drop(listener);
    assert_eq!(outcome(open, &check).await, failed(Failure::ConnectRefused));

    let (_listener, _waiting, deaf) = deaf().await;
    let result = probe(deaf, &check, None).await;
    assert_eq!(result.outcome, failed(Failure::ConnectTimeout));
    assert!(result.duration >= Duration::from_millis(200) && result.duration < Duration::from_secs(5));

    let nowhere = SocketAddr::from((Ipv4Addr::BROADCAST, 80));
    assert_eq!(outcome(nowhere, &check).await, failed(Failure::Unreachable));
}

#[tokio::test]
async fn probes_leave_no_socket_in_time_wait() {
    let (listener, address) = listen().await;
    serve(listener, Reply::Text("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"));
    for _ in 0..20 {
        assert_eq!(outcome(address, &tcp(timing(1000, 500, 1, 1))).await, Ok(()));
    }
    const TIME_WAIT: &str = "06";
    let port = format!("{:04X}", address.port());
    let sockets = fs::read_to_string("/proc/self/net/tcp").expect("procfs is there");
    let waiting = sockets.lines().filter(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        fields[3] == TIME_WAIT && (fields[1].ends_with(&port) || fields[2].ends_with(&port))
    });
    assert_eq!(waiting.count(), 0, "{sockets}");
}

#[tokio::test]
async fn http_passes_on_an_expected_status_and_says_what_it_met_otherwise() {
    let cases: [(&str, Reply, Result<(), Miss>); 16] = [
        ("200", Reply::Text("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"), Ok(())),
        ("204", Reply::Text("HTTP/1.1 204 No Content\r\n\r\n"), Ok(())),
        ("HTTP/1.0", Reply::Text("HTTP/1.0 200 OK\r\n\r\nold"), Ok(())),
        ("an open end", Reply::Text("HTTP/1.1 200 OK\r\n\r\nuntil the end"), Ok(())),
        (
            "100 first",
            Reply::Text("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
            Ok(()),
        ),
        (
            "an answer and no close",
            Reply::ThenSilence("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
            Ok(()),
        ),
        ("an endless body", Reply::EndlessBody, Ok(())),
        (
            "503",
            Reply::Text("HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"),
            failed(Failure::BadStatus(503)),
        ),
        (
            "a redirect is not followed",
            Reply::Text("HTTP/1.1 302 Found\r\nLocation: /ok\r\nContent-Length: 0\r\n\r\n"),
            failed(Failure::BadStatus(302)),
        ),
        ("nothing", Reply::Text(""), failed(Failure::Closed)),
        (
            "half a body",
            Reply::Text("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"),
            failed(Failure::Closed),
        ),
        ("another protocol", Reply::Text("SSH-2.0-OpenSSH_9.2\r\n"), failed(Failure::Protocol)),
        ("an endless head", Reply::EndlessHead, failed(Failure::Protocol)),
        ("a reset", Reply::Reset, failed(Failure::Reset)),
        ("silence", Reply::ThenSilence(""), failed(Failure::Timeout)),
        ("too slow", Reply::Drip, failed(Failure::Timeout)),
    ];
    let check = http("/", None, "200-299", timing(1000, 400, 1, 1));
    for (name, reply, expected) in cases {
        let (listener, address) = listen().await;
        serve(listener, reply);
        let result = probe(address, &check, None).await;
        assert_eq!(result.outcome, expected, "{name}");
        assert!(result.duration < Duration::from_secs(5), "{name} took {:?}", result.duration);
    }
}

#[tokio::test]
async fn http_looks_for_what_the_body_has_to_contain() {
    let cases: [(&str, Reply, Result<(), Miss>); 6] = [
        ("there", Reply::Text("HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\nall is ready.\n"), Ok(())),
        (
            "across two chunks",
            Reply::Text(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nis re\r\n3\r\nady\r\n0\r\n\r\n",
            ),
            Ok(()),
        ),
        (
            "elsewhere only",
            Reply::Text("HTTP/1.1 200 is ready\r\nContent-Length: 6\r\n\r\nready?"),
            failed(Failure::BadAnswer),
        ),
        ("no body", Reply::Text("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"), failed(Failure::BadAnswer)),
        ("an endless body", Reply::EndlessBody, failed(Failure::BadAnswer)),
        (
            "another status",
            Reply::Text("HTTP/1.1 503 Busy\r\nContent-Length: 8\r\n\r\nis ready"),
            failed(Failure::BadStatus(503)),
        ),
    ];
    let check = HttpCheck::new("/", None, "200".parse().expect("a status")).expect("a path");
    let check = CheckKind::Http(Arc::new(check.expecting_body("is ready")));
    let check = Check { kind: check, timing: timing(1000, 400, 1, 1) };
    for (name, reply, expected) in cases {
        let (listener, address) = listen().await;
        serve(listener, reply);
        assert_eq!(outcome(address, &check).await, expected, "{name}");
    }
}

#[tokio::test]
async fn the_request_is_what_the_check_says() {
    let (listener, address) = listen().await;
    let requests = serve(listener, Reply::Text("HTTP/1.1 301 Moved\r\nContent-Length: 0\r\n\r\n"));
    let timing = timing(1000, 500, 1, 1);
    let check = http("/healthz?full=1", Some("shop.example"), "200-299,301", timing);
    assert_eq!(outcome(address, &check).await, Ok(()));
    assert_eq!(outcome(address, &http("/", None, "301", timing)).await, Ok(()));

    let requests = requests.lock().expect("no test thread panicked");
    let (named, plain) = (requests[0].to_lowercase(), requests[1].to_lowercase());
    assert!(named.starts_with("get /healthz?full=1 http/1.1\r\n"), "{named}");
    assert!(named.contains("\r\nhost: shop.example\r\n"), "{named}");
    assert!(named.contains("\r\nconnection: close\r\n"), "{named}");
    assert!(plain.contains(&format!("\r\nhost: {address}\r\n")), "{plain}");
}

#[tokio::test]
async fn a_mark_takes_a_privilege_and_its_lack_is_not_the_targets_fault() {
    let (_listener, address) = listen().await;
    let result = probe(address, &tcp(timing(1000, 500, 1, 1)), Some(7)).await;
    let expected = if may_mark() { Ok(()) } else { Err(Miss::NotRun(Trouble::Mark)) };
    assert_eq!(result.outcome, expected);
}

/// CAP_NET_ADMIN or CAP_NET_RAW is effective.
fn may_mark() -> bool {
    const NET_ADMIN_OR_RAW: u64 = 1 << 12 | 1 << 13;
    let status = fs::read_to_string("/proc/self/status").expect("procfs is there");
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = line.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok());
    bits.expect("the kernel tells them in hex") & NET_ADMIN_OR_RAW != 0
}
