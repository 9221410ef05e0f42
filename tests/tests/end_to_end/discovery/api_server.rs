//! An API server of Kubernetes, as far as EndpointSlices go: it lists them page by page, tells whoever watches of what happens after a
//! version, forgets what is long ago, asks for a token, and speaks within TLS only.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use anyhow::{Context as _, Result};
use lb_tests::Namespace;
use percent_encoding::percent_decode_str;
use quinn::rustls::crypto::ring::default_provider;
use quinn::rustls::pki_types::PrivatePkcs8KeyDer;
use quinn::rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};
use socket2::SockRef;

/// Slices on a page of a list. (A server may give fewer than it is asked for.)
const PAGE: usize = 2;
/// The namespace that its services are in.
pub const NAMESPACE: &str = "shop";
const LABEL: &str = "kubernetes.io/service-name";

/// Who signs the certificate of a cluster's API server. All clusters' authorities have the same name.
pub struct Authority {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    pem: String,
}

/// The certificate of a server, and its key.
pub type Identity = Arc<ServerConfig>;

impl Authority {
    pub fn new() -> Result<Self> {
        let key = rcgen::KeyPair::generate()?;
        let mut parameters = rcgen::CertificateParams::new(vec![])?;
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        parameters.distinguished_name.push(rcgen::DnType::CommonName, "kubernetes");
        let pem = parameters.self_signed(&key)?.pem();
        Ok(Self { issuer: rcgen::Issuer::new(parameters, key), pem })
    }

    /// Its own certificate.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// A certificate for an address or a name.
    pub fn identity(&self, of: &str) -> Result<Identity> {
        let key = rcgen::KeyPair::generate()?;
        let certificate =
            rcgen::CertificateParams::new(vec![of.to_owned()])?.signed_by(&key, &self.issuer)?;
        let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
            )?;
        Ok(Arc::new(config))
    }
}

/// How a server says that it has forgotten a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gone {
    /// By the status of its answer to a watch.
    Status,
    /// By what such a watch says first.
    Event,
}

/// It ends with this value.
pub struct ApiServer {
    shared: Arc<Shared>,
    listener: TcpListener,
    accepting: Option<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    news: Condvar,
}

struct State {
    identity: Identity,
    token: String,
    /// Of everything that the server knows, slices or not.
    version: u64,
    slices: BTreeMap<String, Value>,
    /// What has happened to slices, and the version that it made.
    changes: Vec<(u64, Change)>,
    /// Lists whose next pages somebody may ask for, by version.
    pages: HashMap<u64, Vec<Value>>,
    /// Nothing before this version is known any more.
    oldest: u64,
    gone: Gone,
    /// Watches are told this version.
    bookmark: u64,
    /// How often watches were ended.
    ended: u64,
    /// What ends them from the start.
    trouble: Option<String>,
    /// The next change is told by halves.
    torn: bool,
    asked: Vec<String>,
    connections: HashMap<u64, TcpStream>,
    accepted: u64,
}

#[derive(Clone)]
struct Change {
    kind: &'static str,
    slice: Value,
}

impl ApiServer {
    /// Starts one without any slice, for those who have this token.
    pub fn start(host: &Namespace, at: SocketAddr, identity: Identity, token: &str) -> Result<Self> {
        let listener =
            host.run(|| TcpListener::bind(at)).with_context(|| format!("no API server at {at}"))?;
        let state = State {
            identity,
            token: token.to_owned(),
            version: 1000,
            slices: BTreeMap::new(),
            changes: Vec::new(),
            pages: HashMap::new(),
            oldest: 0,
            gone: Gone::Event,
            bookmark: 0,
            ended: 0,
            trouble: None,
            torn: false,
            asked: Vec::new(),
            connections: HashMap::new(),
            accepted: 0,
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), news: Condvar::new() });
        let accepting = {
            let (listener, shared) = (listener.try_clone()?, Arc::clone(&shared));
            thread::spawn(move || {
                while let Ok((stream, _)) = listener.accept() {
                    let Ok((id, identity)) = shared.lock().welcome(&stream) else { continue };
                    let shared = Arc::clone(&shared);
                    // A client that does not like the certificate, or goes, is no failure.
                    thread::spawn(move || shared.serve(stream, id, identity));
                }
            })
        };
        Ok(Self { shared, listener, accepting: Some(accepting) })
    }

    /// Makes a slice of a service, or another one of it.
    pub fn apply(&self, name: &str, service: &str, slice: Value) {
        self.change(|state| state.apply(name, service, slice));
    }

    /// Takes a slice away.
    pub fn delete(&self, name: &str) {
        self.change(|state| state.delete(name));
    }

    /// Takes a slice away when nobody listens, and forgets that it has: who watched until then has to list again.
    pub fn delete_unheard(&self, name: &str, gone: Gone) {
        self.change(|state| {
            state.cut();
            state.delete(name);
            state.forget(gone);
        });
    }

    /// From now on every watch is ended by an error that says this; `None`: it is well again.
    pub fn fail_watches(&self, message: Option<&str>) {
        self.change(|state| state.trouble = message.map(str::to_owned));
    }

    /// Other things have happened. Tells watches which version it is now, and returns it.
    pub fn bookmark(&self) -> u64 {
        self.change(|state| {
            state.version += 100;
            state.bookmark = state.version;
            state.bookmark
        })
    }

    /// Ends watches as it does every few minutes.
    pub fn end_watches(&self) {
        self.change(|state| state.ended += 1);
    }

    /// Breaks all connections, without a word.
    pub fn cut(&self) {
        self.change(State::cut);
    }

    /// Breaks the connection of the next one to be told of a change, in the midst of it.
    pub fn tear_next(&self) {
        self.change(|state| state.torn = true);
    }

    /// From now on this token is the one that is valid. Watches go on.
    pub fn expect_token(&self, token: &str) {
        self.change(|state| token.clone_into(&mut state.token));
    }

    /// From now on connections begin with another certificate.
    pub fn identify(&self, identity: Identity) {
        self.change(|state| state.identity = identity);
    }

    /// What it was asked for so far: `list`, `page`, `watch VERSION`, or a status and why.
    pub fn asked(&self) -> Vec<String> {
        self.shared.lock().asked.clone()
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let done = change(&mut self.shared.lock());
        self.shared.news.notify_all();
        done
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        // This wakes who accepts.
        let _ = SockRef::from(&self.listener).shutdown(Shutdown::Both);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
        self.cut();
    }
}

impl State {
    fn welcome(&mut self, stream: &TcpStream) -> io::Result<(u64, Identity)> {
        self.accepted += 1;
        self.connections.insert(self.accepted, stream.try_clone()?);
        Ok((self.accepted, Arc::clone(&self.identity)))
    }

    fn apply(&mut self, name: &str, service: &str, mut slice: Value) {
        self.version += 1;
        slice["metadata"] = json!({
            "name": name,
            "namespace": NAMESPACE,
            "resourceVersion": self.version.to_string(),
            "labels": { LABEL: service, "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io" },
            "creationTimestamp": "2026-01-01T00:00:00Z",
        });
        slice["kind"] = "EndpointSlice".into();
        slice["apiVersion"] = "discovery.k8s.io/v1".into();
        let before = self.slices.insert(name.to_owned(), slice.clone());
        let kind = if before.is_some() { "MODIFIED" } else { "ADDED" };
        self.changes.push((self.version, Change { kind, slice }));
    }

    fn delete(&mut self, name: &str) {
        self.version += 1;
        let mut slice = self.slices.remove(name).expect("a slice");
        slice["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.changes.push((self.version, Change { kind: "DELETED", slice }));
    }

    fn forget(&mut self, gone: Gone) {
        self.changes.clear();
        self.pages.clear();
        self.oldest = self.version;
        self.gone = gone;
    }

    fn cut(&mut self) {
        for (_, connection) in self.connections.drain() {
            // The client may have closed it already.
            let _ = connection.shutdown(Shutdown::Both);
        }
    }
}

/// One that is under way.
struct Watch {
    /// Of its connection.
    id: u64,
    /// How often watches had been ended when it began.
    ended: u64,
}

/// What is left to be told on a watch.
enum Next {
    /// A change, or a version that is reached without one; and whether it is to be told by halves.
    Told(u64, Value, bool),
    End(Option<Value>),
}

type Stream = BufReader<StreamOwned<ServerConnection, TcpStream>>;

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self, stream: TcpStream, id: u64, identity: Identity) -> io::Result<()> {
        let connection = ServerConnection::new(identity).map_err(io::Error::other)?;
        let mut stream = BufReader::new(StreamOwned::new(connection, stream));
        let served = self.answer(&mut stream, id);
        self.lock().connections.remove(&id);
        served?;
        let stream = stream.get_mut();
        stream.conn.send_close_notify();
        stream.flush()
    }

    /// Answers one request.
    fn answer(&self, stream: &mut Stream, id: u64) -> io::Result<()> {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if stream.read_line(&mut head)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        let target = head.split(' ').nth(1).unwrap_or_default();
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let query: HashMap<&str, String> = query
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .map(|(key, value)| (key, percent_decode_str(value).decode_utf8_lossy().into_owned()))
            .collect();
        let of = |key: &str| query.get(key).map(String::as_str).unwrap_or_default();
        let bearer = head.lines().filter_map(|line| line.split_once(": "));
        let bearer = bearer
            .filter(|(name, _)| name.eq_ignore_ascii_case("authorization"))
            .find_map(|(_, value)| value.strip_prefix("Bearer "));
        let service = of("labelSelector").strip_prefix(LABEL).and_then(|rest| rest.strip_prefix('='));

        let mut state = self.lock();
        let wanted = format!("/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices");
        let (code, answer) = match service {
            _ if bearer != Some(state.token.as_str()) => (401, failure(401, "Unauthorized", "Unauthorized")),
            Some(service) if path == wanted && of("watch") == "true" => {
                let since = of("resourceVersion");
                state.asked.push(format!("watch {since}"));
                let since = since.parse().unwrap_or_default();
                if since >= state.oldest || state.gone == Gone::Event {
                    let ended = state.ended;
                    drop(state);
                    return self.watch(stream, service, &Watch { id, ended }, since);
                }
                (410, expired(since, state.oldest))
            }
            Some(service) if path == wanted => list(&mut state, service, of("continue")),
            _ => (404, failure(404, "NotFound", "the server could not find the requested resource")),
        };
        if code != 200 {
            state.asked.push(format!("{code} {}", answer["message"]));
        }
        drop(state);
        let answer = answer.to_string();
        let head = format!(
            "HTTP/1.1 {code} Whatever\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            answer.len()
        );
        stream.get_mut().write_all((head + &answer).as_bytes())
    }

    /// Tells of what happens to a service's slices, until watches end or the connection breaks.
    fn watch(&self, stream: &mut Stream, service: &str, watch: &Watch, mut since: u64) -> io::Result<()> {
        let stream = stream.get_mut();
        stream.write_all(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n",
        )?;
        loop {
            match self.next(watch, service, since)? {
                Next::Told(version, event, torn) => {
                    let line = format!("{event}\n");
                    if torn {
                        say(stream, &line[..line.len() / 2])?;
                        return Err(io::ErrorKind::ConnectionAborted.into());
                    }
                    say(stream, &line)?;
                    since = version;
                }
                Next::End(last) => {
                    if let Some(event) = last {
                        say(stream, &format!("{event}\n"))?;
                    }
                    return stream.write_all(b"0\r\n\r\n");
                }
            }
        }
    }

    /// Waits for what there is to be told to a watch that knows everything up to a version.
    fn next(&self, watch: &Watch, service: &str, since: u64) -> io::Result<Next> {
        let mut state = self.lock();
        loop {
            if !state.connections.contains_key(&watch.id) {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            if since < state.oldest {
                return Ok(Next::End(Some(event("ERROR", &expired(since, state.oldest)))));
            }
            let change = state.changes.iter().find(|(version, change)| {
                *version > since && change.slice["metadata"]["labels"][LABEL] == service
            });
            if let Some((version, Change { kind, slice })) = change {
                let told = (*version, event(kind, slice));
                let torn = std::mem::take(&mut state.torn);
                return Ok(Next::Told(told.0, told.1, torn));
            }
            if state.bookmark > since {
                let version = state.bookmark;
                let metadata = json!({ "resourceVersion": version.to_string(), "creationTimestamp": null });
                let object = json!({
                    "kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1",
                    "metadata": metadata, "addressType": "", "endpoints": null, "ports": null,
                });
                return Ok(Next::Told(version, event("BOOKMARK", &object), false));
            }
            if let Some(message) = &state.trouble {
                return Ok(Next::End(Some(event("ERROR", &failure(500, "InternalError", message)))));
            }
            if state.ended != watch.ended {
                return Ok(Next::End(None));
            }
            state = self.news.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// A piece of an answer whose length nobody knows.
fn say(stream: &mut impl Write, piece: &str) -> io::Result<()> {
    write!(stream, "{:x}\r\n{piece}\r\n", piece.len())?;
    stream.flush()
}

/// A page of a list, and its status.
fn list(state: &mut State, service: &str, more: &str) -> (u16, Value) {
    let (version, at) = match more.split_once("/+=") {
        None => {
            state.asked.push("list".to_owned());
            let of_service = |slice: &&Value| slice["metadata"]["labels"][LABEL] == service;
            let all = state.slices.values().filter(of_service).cloned().collect();
            state.pages.insert(state.version, all);
            (state.version, 0)
        }
        Some((version, at)) => {
            state.asked.push("page".to_owned());
            (version.parse().unwrap_or_default(), at.parse().unwrap_or_default())
        }
    };
    let Some(all) = state.pages.get(&version) else {
        return (410, failure(410, "Expired", "The provided continue parameter is too old"));
    };
    let items: Vec<&Value> = all.iter().skip(at).take(PAGE).collect();
    let mut metadata = json!({ "resourceVersion": version.to_string() });
    if at + PAGE < all.len() {
        metadata["continue"] = format!("{version}/+={}", at + PAGE).into();
        metadata["remainingItemCount"] = (all.len() - at - PAGE).into();
    }
    let list = json!({
        "kind": "EndpointSliceList", "apiVersion": "discovery.k8s.io/v1", "metadata": metadata, "items": items,
    });
    (200, list)
}

fn event(kind: &str, object: &Value) -> Value {
    json!({ "type": kind, "object": object })
}

fn expired(since: u64, oldest: u64) -> Value {
    failure(410, "Expired", &format!("too old resource version: {since} ({oldest})"))
}

fn failure(code: u16, reason: &str, message: &str) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code,
    })
}
