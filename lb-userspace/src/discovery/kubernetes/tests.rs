use std::sync::Arc;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, mpsc};

use super::*;

const EVERYBODY: Families = Families { v4: true, v6: true, vip_v4: true };

fn endpoint(address: &str, conditions: Value) -> Value {
    json!({ "addresses": [address], "conditions": conditions })
}

fn slice(name: &str, version: u32, endpoints: &[Value]) -> Value {
    json!({
        "metadata": { "name": name, "resourceVersion": version.to_string(), "labels": { "kubernetes.io/service-name": "web" } },
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": [{ "name": "http", "protocol": "TCP", "port": 8080 }],
    })
}

fn of(
    slices: &[Value],
    port_name: Option<&str>,
    port: u16,
    families: Families,
) -> Result<Vec<String>, String> {
    let slices: Vec<Slice> =
        slices.iter().map(|it| serde_json::from_value(it.clone()).expect("a slice")).collect();
    let port_name = port_name.map(|name| name.parse().expect("a name"));
    let found = backends(slices.iter(), port_name.as_ref(), port, Protocol::Tcp, families)?;
    Ok(found.iter().map(|backend| format!("{} {}", backend.address, backend.state)).collect())
}

#[test]
fn conditions_say_who_takes_new_flows() {
    let endpoints = [
        endpoint("10.0.0.1", json!({ "ready": true, "serving": true, "terminating": false })),
        endpoint("10.0.0.2", json!({})),
        endpoint("10.0.0.3", json!({ "ready": null })),
        endpoint("10.0.0.4", json!({ "ready": false })),
        endpoint("10.0.0.5", json!({ "ready": false, "serving": true, "terminating": true })),
        endpoint("10.0.0.6", json!({ "ready": false, "serving": false, "terminating": true })),
        endpoint("10.0.0.7", json!({ "ready": false, "terminating": true })),
        json!({ "addresses": ["10.0.0.8", "10.0.0.9"] }),
    ];
    let expected = ["1 ready", "2 ready", "3 ready", "4 drain", "5 drain", "8 ready"];
    let expected = expected.map(|it| format!("10.0.0.{}", it.replace(' ', ":8080 ")));
    assert_eq!(of(&[slice("a", 1, &endpoints)], None, 80, EVERYBODY), Ok(expected.to_vec()));
}

#[test]
fn an_endpoint_in_two_slices_is_one_backend_and_ready_if_either_says_so() {
    let not = endpoint("10.0.0.1", json!({ "ready": false }));
    let ready = endpoint("10.0.0.1", json!({ "ready": true }));
    for both in [[not.clone(), ready.clone()], [ready, not]] {
        let [one, other] = both;
        let slices = [slice("a", 1, &[one]), slice("b", 2, &[other])];
        assert_eq!(of(&slices, None, 80, EVERYBODY), Ok(vec!["10.0.0.1:8080 ready".to_owned()]));
    }
}

#[test]
fn who_ends_serves_while_nobody_is_ready() {
    let leaving = endpoint("10.0.0.1", json!({ "ready": false, "serving": true, "terminating": true }));
    let left = endpoint("10.0.0.2", json!({ "ready": false, "serving": false, "terminating": true }));
    let starting = endpoint("10.0.0.3", json!({ "ready": false, "serving": false, "terminating": false }));
    let mut endpoints = vec![leaving, left, starting];
    let all = |endpoints: &[Value]| of(&[slice("a", 1, endpoints)], None, 80, EVERYBODY);
    assert_eq!(
        all(&endpoints),
        Ok(["1:8080 ready", "3:8080 drain"].map(|it| format!("10.0.0.{it}")).to_vec())
    );
    endpoints.push(endpoint("10.0.0.4", json!({ "ready": true })));
    let expected = ["1:8080 drain", "3:8080 drain", "4:8080 ready"].map(|it| format!("10.0.0.{it}"));
    assert_eq!(all(&endpoints), Ok(expected.to_vec()));
}

#[test]
fn families_names_and_go_s_way_to_write_nothing() {
    let mut slices = [
        slice("four", 1, &[endpoint("10.0.0.1", json!({}))]),
        slice("six", 2, &[endpoint("2001:db8::1", json!({}))]),
        slice("names", 3, &[endpoint("web.example", json!({}))]),
        json!({ "metadata": { "name": "empty" }, "endpoints": null, "ports": null }),
    ];
    let list = json!({ "metadata": { "resourceVersion": "1" }, "items": null });
    assert!(serde_json::from_value::<List>(list).expect("a list").items.is_empty());
    let v4 = Families { v6: false, ..EVERYBODY };
    assert_eq!(of(&slices, None, 80, v4), Ok(vec!["10.0.0.1:8080 ready".to_owned()]));
    assert_eq!(of(&slices, None, 80, EVERYBODY).map(|all| all.len()), Ok(2));
    // A service of every port.
    assert_eq!(of(&slices, None, 0, v4), Ok(vec!["10.0.0.1:0 ready".to_owned()]));
    slices[0]["ports"] = Value::Null;
    assert_eq!(of(&slices[..1], None, 80, v4), Ok(vec!["10.0.0.1:80 ready".to_owned()]));
}

#[test]
fn a_pod_of_both_families_is_one_backend_at_the_vips() {
    let of_pod = |address: &str, pod: &str, ready: bool| json!({ "addresses": [address], "conditions": { "ready": ready }, "targetRef": { "kind": "Pod", "uid": pod } });
    let slices = [
        slice("six", 1, &[of_pod("2001:db8::1", "a", true), of_pod("2001:db8::3", "c", true)]),
        slice("four", 2, &[of_pod("10.0.0.1", "a", false), of_pod("10.0.0.2", "b", true)]),
        // Written by hand: it stands for nobody else.
        slice("more", 3, &[endpoint("2001:db8::9", json!({}))]),
    ];
    let found = |vip_v4| of(&slices, None, 80, Families { vip_v4, ..EVERYBODY }).expect("backends");
    assert_eq!(
        found(true),
        [
            "10.0.0.1:8080 drain",
            "10.0.0.2:8080 ready",
            "[2001:db8::3]:8080 ready",
            "[2001:db8::9]:8080 ready"
        ]
    );
    assert_eq!(
        found(false),
        [
            "10.0.0.2:8080 ready",
            "[2001:db8::1]:8080 ready",
            "[2001:db8::3]:8080 ready",
            "[2001:db8::9]:8080 ready"
        ]
    );
}

#[test]
fn one_of_several_ports_has_to_be_named() {
    let mut slices = [slice("a", 1, &[endpoint("10.0.0.1", json!({}))])];
    slices[0]["ports"] = json!([
        { "name": "http", "port": 8080 },
        { "name": "admin", "protocol": "TCP", "port": 9090 },
        { "name": "http", "protocol": "UDP", "port": 8443 },
    ]);
    let why = of(&slices, None, 80, EVERYBODY).expect_err("two ports");
    assert_eq!(why, "the slice a has several tcp ports: `port_name` has to say which of `http`, `admin`");
    assert_eq!(of(&slices, Some("admin"), 80, EVERYBODY), Ok(vec!["10.0.0.1:9090 ready".to_owned()]));
    let why = of(&slices, Some("grpc"), 80, EVERYBODY).expect_err("no such port");
    assert_eq!(why, "the slice a has no tcp port `grpc`; it has `http`, `admin`");
}

/// An API server that speaks of one service's slices.
struct Server {
    url: String,
    /// Paths of requests.
    asked: mpsc::UnboundedReceiver<String>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// Pages of the list; each has its `continue`.
    pages: Vec<Value>,
    /// What watches say, one after the other.
    watches: std::collections::VecDeque<Watch>,
}

/// Lines, and then either the end or silence.
struct Watch {
    status: &'static str,
    lines: Vec<Value>,
    stays: bool,
}

impl Server {
    async fn start(pages: Vec<Value>, watches: Vec<Watch>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let (sender, asked) = mpsc::unbounded_channel();
        let state = Arc::new(Mutex::new(State { pages, watches: watches.into() }));
        let shared = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(stream, sender.clone(), Arc::clone(&shared)));
            }
        });
        Self { url, asked, state }
    }

    fn follow(&self) -> Kubernetes {
        let asked = config::Kubernetes {
            url: self.url.parse().expect("a URL"),
            namespace: "shop".parse().expect("a name"),
            name: "web".parse().expect("a name"),
            port_name: None,
            token_file: None,
            ca_file: None,
            timeout: Duration::from_secs(2),
        };
        Kubernetes::new(asked, 80, Protocol::Tcp, EVERYBODY)
    }

    async fn next(&mut self) -> String {
        timeout(Duration::from_secs(20), self.asked.recv()).await.expect("in time").expect("a request")
    }
}

async fn answer(stream: TcpStream, asked: mpsc::UnboundedSender<String>, state: Arc<Mutex<State>>) {
    let mut stream = BufReader::new(stream);
    let mut request = String::new();
    while !request.ends_with("\r\n\r\n") {
        if stream.read_line(&mut request).await.unwrap_or(0) == 0 {
            return;
        }
    }
    let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
    let _ = asked.send(path.clone());
    let (watch, page) = {
        let mut state = state.lock().await;
        let at = path.split("continue=page").nth(1).and_then(|at| at.parse().ok()).unwrap_or(0);
        let watch = path.contains("watch=true").then(|| state.watches.pop_front());
        (watch, state.pages.get::<usize>(at).cloned())
    };
    let whole = |status: &str, body: String| {
        format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    };
    match watch {
        None => {
            let page = page.unwrap_or_default();
            let status = page["status"].as_str().unwrap_or("200 OK").to_owned();
            let _ = stream.write_all(whole(&status, page.to_string()).as_bytes()).await;
        }
        // Nothing happens any more.
        Some(None) => {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
            std::future::pending::<()>().await;
        }
        Some(Some(Watch { status, lines, stays })) => {
            let head = format!("HTTP/1.1 {status}\r\nTransfer-Encoding: chunked\r\n\r\n");
            let _ = stream.write_all(head.as_bytes()).await;
            for line in lines {
                let line = format!("{line}\n");
                // In two pieces: a line is not what comes at once.
                let (one, other) = line.split_at(line.len() / 2);
                for piece in [one, other] {
                    let _ = stream.write_all(format!("{:x}\r\n{piece}\r\n", piece.len()).as_bytes()).await;
                    let _ = stream.flush().await;
                }
            }
            if stays {
                std::future::pending::<()>().await;
            }
            let _ = stream.write_all(b"0\r\n\r\n").await;
        }
    }
}

fn page(version: &str, more: &str, items: &[Value]) -> Value {
    json!({ "kind": "EndpointSliceList", "metadata": { "resourceVersion": version, "continue": more }, "items": items })
}

fn change(kind: &str, object: Value) -> Value {
    json!({ "type": kind, "object": object })
}

fn ready(address: &str) -> Value {
    endpoint(address, json!({ "ready": true }))
}

/// Asks until the answer is this one.
async fn expect(kubernetes: &mut Kubernetes, expected: &[&str]) {
    let wait = async {
        loop {
            let found = kubernetes.ask().await.unwrap_or_default();
            let found: Vec<String> =
                found.iter().map(|it| format!("{} {}", it.address.ip(), it.state)).collect();
            if found == expected {
                return;
            }
            kubernetes.until_news().await;
        }
    };
    timeout(Duration::from_secs(20), wait).await.unwrap_or_else(|_| panic!("not in time: {expected:?}"));
}

const PATH: &str = "/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices?labelSelector=kubernetes%2Eio%2Fservice%2Dname%3Dweb";

#[tokio::test]
async fn a_list_of_two_pages_is_followed_by_changes_from_its_version_on() {
    let pages = vec![
        page("40", "page1", &[slice("a", 30, &[ready("10.0.0.1")])]),
        page("40", "", &[slice("b", 31, &[ready("10.0.1.1")])]),
    ];
    let watches = vec![
        Watch {
            status: "200 OK",
            lines: vec![
                change("MODIFIED", slice("a", 41, &[ready("10.0.0.1"), ready("10.0.0.2")])),
                change("BOOKMARK", json!({ "metadata": { "resourceVersion": "50" } })),
            ],
            stays: false,
        },
        Watch {
            status: "200 OK",
            lines: vec![
                change("DELETED", slice("b", 51, &[])),
                change("ADDED", slice("c", 52, &[endpoint("10.0.2.1", json!({ "ready": false }))])),
                change("LATER", json!(7)),
            ],
            stays: true,
        },
    ];
    let mut server = Server::start(pages, watches).await;
    let mut kubernetes = server.follow();
    expect(&mut kubernetes, &["10.0.0.1 ready", "10.0.0.2 ready", "10.0.2.1 drain"]).await;
    assert_eq!(server.next().await, format!("{PATH}&limit=100"));
    assert_eq!(server.next().await, format!("{PATH}&limit=100&continue=page1"));
    for version in ["40", "50"] {
        let watch = format!(
            "{PATH}&watch=true&allowWatchBookmarks=true&timeoutSeconds=240&resourceVersion={version}"
        );
        assert_eq!(server.next().await, watch);
    }
}

#[tokio::test]
async fn a_version_that_is_forgotten_means_to_list_again() {
    // Once in the midst of a watch, once instead of one.
    let expired = change("ERROR", json!({ "kind": "Status", "code": 410, "reason": "Expired" }));
    for (status, lines) in [("200 OK", vec![expired]), ("410 Gone", Vec::new())] {
        let watches = vec![Watch { status, lines, stays: false }];
        let mut server =
            Server::start(vec![page("1", "", &[slice("a", 1, &[ready("10.0.0.1")])])], watches).await;
        let mut kubernetes = server.follow();
        expect(&mut kubernetes, &["10.0.0.1 ready"]).await;
        server.state.lock().await.pages = vec![page("90", "", &[slice("b", 80, &[ready("10.0.9.1")])])];
        expect(&mut kubernetes, &["10.0.9.1 ready"]).await;
        let mut versions = Vec::new();
        while versions.len() < 4 {
            let path = server.next().await;
            versions.push(path.split("resourceVersion=").nth(1).unwrap_or("list").to_owned());
        }
        assert_eq!(versions, ["list", "1", "list", "90"], "{status}");
    }
}

#[tokio::test]
async fn after_an_error_it_lists_again() {
    let trouble = change("ERROR", json!({ "kind": "Status", "code": 500, "message": "leader changed" }));
    let strange = change("MODIFIED", json!({ "metadata": { "name": "a" }, "endpoints": 7 }));
    for (said, told) in [(trouble, "leader changed"), (strange, "cannot be understood")] {
        let watches = vec![Watch { status: "200 OK", lines: vec![said], stays: false }];
        let page = page("1", "", &[slice("a", 1, &[ready("10.0.0.1")])]);
        let mut server = Server::start(vec![page], watches).await;
        let mut kubernetes = server.follow();
        let why = async {
            loop {
                if let Err(why) = kubernetes.ask().await {
                    return why;
                }
                kubernetes.until_news().await;
            }
        };
        let why = timeout(Duration::from_secs(20), why).await.expect("in time");
        assert!(why.contains(told), "{why}");
        expect(&mut kubernetes, &["10.0.0.1 ready"]).await;
        let asked = [server.next().await, server.next().await, server.next().await];
        assert!(asked[1].contains("watch=true") && asked[2].ends_with("limit=100"), "{asked:?}");
    }
}

#[tokio::test]
async fn a_server_that_refuses_says_why_and_is_asked_again() {
    let forbidden = "endpointslices.discovery.k8s.io is forbidden: User \"lb\" cannot list resource";
    let refusal = json!({ "status": "403 Forbidden", "kind": "Status", "code": 403, "message": forbidden });
    let server = Server::start(vec![refusal], Vec::new()).await;
    let mut kubernetes = server.follow();
    let why = kubernetes.ask().await.expect_err("it may not");
    assert!(why.contains(forbidden) && why.contains("needs `list` and `watch`"), "{why}");
    server.state.lock().await.pages = vec![page("1", "", &[slice("a", 1, &[ready("10.0.0.1")])])];
    expect(&mut kubernetes, &["10.0.0.1 ready"]).await;
}

#[tokio::test]
async fn what_is_no_list_is_told() {
    let server = Server::start(vec![json!({ "items": 7 })], Vec::new()).await;
    let why = server.follow().ask().await.expect_err("no list");
    assert!(why.starts_with(&server.url) && why.contains(": what it says cannot be understood: "), "{why}");
}
