//! Backends as Kubernetes knows them: the EndpointSlices (`discovery.k8s.io/v1`) of a service, as its API server lists them, and
//! tells of every change from then on (a *watch*, <https://kubernetes.io/docs/reference/using-api/api-concepts/#efficient-detection-of-changes>).
//!
//! The two requests that this takes, and the handful of fields, are written here: a client for all of Kubernetes would be larger than
//! the rest of the agent.
//!
//! A task of its own lists, then watches from the version that the list was of, and goes on from the last version it heard of when the
//! server ends the watch, as it does every few minutes. A version that the server has forgotten (410) means to list again. What has
//! become of an endpoint is not asked for again: the server says it.
//!
//! | endpoint | backend |
//! |---|---|
//! | `ready` (or nothing said of it) | takes new flows |
//! | not ready | drains: it is as good as gone, or may come back |
//! | not ready, `terminating`, and not `serving` | is left out; it finishes the flows it has |
//!
//! While no endpoint is ready, those that are `terminating` and still `serving` take new flows, as kube-proxy has it: a service of one
//! pod that is replaced would have nobody else.
//!
//! A pod with addresses of both families is one backend: at the address of the VIP's family. (It is in slices of both, and they come
//! one after the other: until the second one is there, the other address may be its backend for a moment.)

use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hyper::header::{AUTHORIZATION, HeaderValue};
use hyper::{StatusCode, Uri};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::{Families, MAX_LIST};
use crate::config::{self, AdminState, Backend, Protocol, Weight};
use crate::web::{Get, Opened};

/// How many slices a page has. (A slice has 100 endpoints at most, unless somebody has said otherwise.)
const PAGE: usize = 100;
/// How long a watch lasts, in seconds: the server ends it then.
const WATCH: u64 = 240;
/// From one request to the next, at least; twice as long after each failure, up to the second one.
const PAUSE: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(30)];

/// All backends that there are, by address; or why nobody knows. `None`: nobody has been asked yet.
type Known = Option<Result<Vec<Backend>, String>>;

pub(super) struct Kubernetes {
    known: watch::Receiver<Known>,
    /// Ends with this value.
    _following: JoinSet<()>,
}

impl Kubernetes {
    pub fn new(asked: config::Kubernetes, port: u16, protocol: Protocol, families: Families) -> Self {
        let (sender, known) = watch::channel(None);
        let mut following = JoinSet::new();
        following.spawn(
            Reflector { asked, port, protocol, families, slices: BTreeMap::new(), known: sender }.run(),
        );
        Self { known, _following: following }
    }

    pub async fn ask(&mut self) -> Result<Vec<Backend>, String> {
        // The task ends with this value only.
        let gone = |_| "nobody follows the API server any more".to_owned();
        self.known.wait_for(Option::is_some).await.map_err(gone)?;
        self.known.borrow_and_update().clone().unwrap_or_else(|| Ok(Vec::new()))
    }

    pub async fn until_news(&mut self) {
        if self.known.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Keeps up with the API server.
struct Reflector {
    asked: config::Kubernetes,
    port: u16,
    protocol: Protocol,
    families: Families,
    /// By name.
    slices: BTreeMap<String, Slice>,
    known: watch::Sender<Known>,
}

/// How a watch ended.
enum Ended {
    /// As all do.
    InTime,
    /// The server has forgotten what came after the version that was asked for.
    Gone,
    /// What the server said cannot be followed, for this reason: who knows what it should have changed.
    Lost(String),
}

impl Reflector {
    async fn run(mut self) {
        let mut pause = PAUSE[0];
        loop {
            let began = Instant::now();
            let mut version = match self.list().await {
                Ok(version) => version,
                Err(why) => {
                    pause = self.failed(why, pause).await;
                    continue;
                }
            };
            self.tell();
            sleep_until(began + PAUSE[0]).await;
            loop {
                let began = Instant::now();
                match self.watch(&mut version).await {
                    Ok(Ended::Gone) => break,
                    Ok(Ended::InTime) => pause = PAUSE[0],
                    Ok(Ended::Lost(why)) => {
                        pause = self.failed(why, pause).await;
                        break;
                    }
                    Err(why) => pause = self.failed(why, pause).await,
                }
                sleep_until(began + PAUSE[0]).await;
            }
        }
    }

    async fn failed(&self, why: String, pause: Duration) -> Duration {
        self.say(Err(format!("{}: {why}", self.asked.url.without_query())));
        sleep(pause).await;
        (2 * pause).min(PAUSE[1])
    }

    /// What the slices come to.
    fn tell(&self) {
        self.say(backends(
            self.slices.values(),
            self.asked.port_name.as_ref(),
            self.port,
            self.protocol,
            self.families,
        ));
    }

    fn say(&self, said: Result<Vec<Backend>, String>) {
        self.known.send_if_modified(|known| {
            let news = known.as_ref() != Some(&said);
            *known = Some(said);
            news
        });
    }

    /// Reads all slices. Returns the version that they are of.
    async fn list(&mut self) -> Result<String, String> {
        let (mut slices, mut more) = (BTreeMap::new(), None::<String>);
        loop {
            let rest = more.map(|more| format!("&continue={}", utf8_percent_encode(&more, NON_ALPHANUMERIC)));
            let query = format!("limit={PAGE}{}", rest.as_deref().unwrap_or_default());
            let get = async {
                let (mut answer, status) = self.get(&query).await?;
                let body = answer.body(MAX_LIST).await?;
                match status {
                    StatusCode::OK => understood::<List>(&body).map(Some),
                    // The version that the first pages were of is forgotten: all over again.
                    StatusCode::GONE if rest.is_some() => Ok(None),
                    status => Err(refused(status, &body)),
                }
            };
            let answered = timeout(self.asked.timeout, get).await;
            let Some(page) = answered.map_err(|_| self.late())?? else {
                (slices, more) = (BTreeMap::new(), None);
                sleep(PAUSE[0]).await;
                continue;
            };
            slices.extend(page.items.into_iter().map(|slice| (slice.metadata.name.clone(), slice)));
            match page.metadata.more.filter(|more| !more.is_empty()) {
                Some(next) => more = Some(next),
                None => {
                    self.slices = slices;
                    return Ok(page.metadata.version);
                }
            }
        }
    }

    /// Follows what happens after `version`, which goes on with it.
    async fn watch(&mut self, version: &mut String) -> Result<Ended, String> {
        let since = utf8_percent_encode(version, NON_ALPHANUMERIC);
        let query =
            format!("watch=true&allowWatchBookmarks=true&timeoutSeconds={WATCH}&resourceVersion={since}");
        let opened = timeout(self.asked.timeout, self.get(&query)).await;
        let (mut answer, status) = opened.map_err(|_| self.late())??;
        if status != StatusCode::OK {
            let body =
                timeout(self.asked.timeout, answer.body(MAX_LIST)).await.map_err(|_| self.late())??;
            return if status == StatusCode::GONE { Ok(Ended::Gone) } else { Err(refused(status, &body)) };
        }
        // It is heard again.
        self.tell();
        // A server that is silent for longer than it should say anything is not there any more.
        let end = Instant::now() + Duration::from_secs(WATCH) + self.asked.timeout;
        let mut unread = Vec::new();
        loop {
            let Ok(piece) = tokio::time::timeout_at(end, answer.piece()).await else {
                return Ok(Ended::InTime);
            };
            // However the connection ended, the next one says whether something is the matter.
            let Ok(Some(piece)) = piece else { return Ok(Ended::InTime) };
            unread.extend_from_slice(&piece);
            while let Some(line) = unread.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = unread.drain(..=line).collect();
                match self.take(&line, version) {
                    Ok(None) => {}
                    Ok(Some(ended)) => return Ok(ended),
                    Err(why) => return Ok(Ended::Lost(why)),
                }
            }
            if unread.len() > MAX_LIST {
                return Ok(Ended::Lost(format!("a change of more than {MAX_LIST} bytes")));
            }
            self.tell();
        }
    }

    /// Takes one change.
    fn take(&mut self, line: &[u8], version: &mut String) -> Result<Option<Ended>, String> {
        let Change { kind, object } = understood(line)?;
        let read = |object| serde_json::from_value(object).map_err(|error| not_understood(&error));
        match kind.as_str() {
            "ADDED" | "MODIFIED" => {
                let slice: Slice = read(object)?;
                version.clone_from(&slice.metadata.version);
                self.slices.insert(slice.metadata.name.clone(), slice);
            }
            "DELETED" => {
                let slice: Slice = read(object)?;
                version.clone_from(&slice.metadata.version);
                self.slices.remove(&slice.metadata.name);
            }
            "BOOKMARK" => {
                let Named { metadata } =
                    serde_json::from_value(object).map_err(|error| not_understood(&error))?;
                *version = metadata.version;
            }
            "ERROR" => {
                let status: Status =
                    serde_json::from_value(object).map_err(|error| not_understood(&error))?;
                return match status.code {
                    410 => Ok(Some(Ended::Gone)),
                    _ => Err(status.message.unwrap_or_else(|| "it ended the watch with an error".to_owned())),
                };
            }
            // A kind that there is not yet.
            _ => {}
        }
        Ok(None)
    }

    async fn get(&self, query: &str) -> Result<(Opened, StatusCode), String> {
        let config::Kubernetes { url, namespace, name, token_file, ca_file, .. } = &self.asked;
        let label = utf8_percent_encode("kubernetes.io/service-name=", NON_ALPHANUMERIC);
        let base = url.uri();
        let uri = format!(
            "{}://{}{}/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices?labelSelector={label}{name}&{query}",
            base.scheme_str().unwrap_or("https"),
            base.authority().map_or("", |authority| authority.as_str()),
            base.path().trim_end_matches('/'),
        );
        let uri: Uri = uri.parse().map_err(|error| format!("{error}"))?;
        let mut headers = Vec::new();
        // Read each time: tokens are renewed. Nobody who listens is to have it.
        if let Some(file) = token_file.as_ref().filter(|_| url.is_https()) {
            let token = std::fs::read_to_string(file.as_path());
            let token = token.map_err(|error| format!("the token cannot be read: {file}: {error}"))?;
            let bearer = HeaderValue::try_from(format!("Bearer {}", token.trim()));
            let mut bearer = bearer.map_err(|_| format!("{file} holds no token"))?;
            bearer.set_sensitive(true);
            headers.push((AUTHORIZATION, bearer));
        }
        let ca_file = ca_file.as_ref().map(|file| file.as_path());
        let opened =
            Get { uri: &uri, agent: "lb-discovery", ca_file, headers, limit: MAX_LIST }.open().await?;
        let status = opened.status;
        Ok((opened, status))
    }

    fn late(&self) -> String {
        format!("no answer within {}", humantime::format_duration(self.asked.timeout))
    }
}

fn understood<T: DeserializeOwned>(text: &[u8]) -> Result<T, String> {
    serde_json::from_slice(text).map_err(|error| not_understood(&error))
}

fn not_understood(error: &serde_json::Error) -> String {
    format!("what it says cannot be understood: {error}")
}

/// Why the server does not answer, in its words, and what to do about it.
fn refused(status: StatusCode, body: &[u8]) -> String {
    let said = serde_json::from_slice::<Status>(body).ok().and_then(|status| status.message);
    let said = said.map(|said| format!(": {said}")).unwrap_or_default();
    let remedy = match status {
        StatusCode::UNAUTHORIZED => " (`token_file` has to name a token that is valid)",
        StatusCode::FORBIDDEN => {
            " (its user needs `list` and `watch` of `endpointslices` in `discovery.k8s.io`)"
        }
        _ => "",
    };
    format!("{status}{said}{remedy}")
}

/// The backends of some slices, sorted by address.
fn backends<'a>(
    slices: impl Iterator<Item = &'a Slice> + Clone,
    port_name: Option<&config::Phrase>,
    port: u16,
    protocol: Protocol,
    families: Families,
) -> Result<Vec<Backend>, String> {
    let mut all: BTreeMap<SocketAddr, AdminState> = BTreeMap::new();
    let mut last_resort = Vec::new();
    // A pod that has addresses of both families is in slices of both.
    let endpoints = slices.clone().flat_map(|slice| &slice.endpoints);
    let first = endpoints.filter(|it| it.address().is_some_and(|address| families.puts_first(address)));
    let first: HashSet<&str> = first.filter_map(Endpoint::pod).collect();
    for slice in slices {
        let port = match port {
            // A service of every port keeps the client's.
            0 => 0,
            _ => slice.port(port_name, protocol)?.unwrap_or(port),
        };
        for endpoint in &slice.endpoints {
            let address = endpoint.address().filter(|address| families.include(*address));
            let Some(address) = address else { continue };
            if !families.puts_first(address) && endpoint.pod().is_some_and(|pod| first.contains(pod)) {
                continue;
            }
            let Some(state) = endpoint.state() else { continue };
            if endpoint.serves_to_the_end() {
                last_resort.push((address, port).into());
            }
            // It may be in two slices, while it moves from one to the other.
            let known = all.entry((address, port).into()).or_insert(state);
            if state == AdminState::Ready {
                *known = state;
            }
        }
    }
    if all.values().all(|&state| state != AdminState::Ready) {
        all.extend(last_resort.into_iter().map(|address| (address, AdminState::Ready)));
    }
    let backend = |(address, state)| Backend {
        address,
        weight: Weight::DEFAULT,
        state,
        priority: 0,
        health_port: None,
        agent_port: None,
        server_ids: None,
    };
    Ok(all.into_iter().map(backend).collect())
}

#[derive(Deserialize)]
struct List {
    metadata: Meta,
    #[serde(default, deserialize_with = "or_empty")]
    items: Vec<Slice>,
}

#[derive(Deserialize)]
struct Change {
    #[serde(rename = "type")]
    kind: String,
    object: serde_json::Value,
}

#[derive(Deserialize)]
struct Named {
    metadata: Meta,
}

#[derive(Deserialize)]
struct Status {
    #[serde(default)]
    code: u16,
    message: Option<String>,
}

#[derive(Deserialize)]
struct Meta {
    #[serde(default)]
    name: String,
    #[serde(default, rename = "resourceVersion")]
    version: String,
    #[serde(default, rename = "continue")]
    more: Option<String>,
}

/// An EndpointSlice; what is not of interest is left out.
#[derive(Deserialize)]
struct Slice {
    metadata: Meta,
    #[serde(default, deserialize_with = "or_empty")]
    endpoints: Vec<Endpoint>,
    #[serde(default, deserialize_with = "or_empty")]
    ports: Vec<PortOf>,
}

#[derive(Deserialize)]
struct Endpoint {
    #[serde(default, deserialize_with = "or_empty")]
    addresses: Vec<String>,
    #[serde(default)]
    conditions: Conditions,
    #[serde(rename = "targetRef")]
    target: Option<Target>,
}

/// What an endpoint stands for.
#[derive(Deserialize)]
struct Target {
    uid: Option<String>,
}

#[derive(Default, Deserialize)]
struct Conditions {
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
}

#[derive(Deserialize)]
struct PortOf {
    name: Option<String>,
    protocol: Option<String>,
    port: Option<u16>,
}

/// Go writes an empty list as `null`.
fn or_empty<'de, T: Deserialize<'de>, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<T>, D::Error> {
    Option::<Vec<T>>::deserialize(from).map(Option::unwrap_or_default)
}

impl Slice {
    /// The port that is meant; `None`: the slice says nothing about ports.
    fn port(&self, name: Option<&config::Phrase>, protocol: Protocol) -> Result<Option<u16>, String> {
        let is_ours = |port: &&PortOf| {
            port.protocol.as_deref().unwrap_or("TCP").eq_ignore_ascii_case(protocol.as_str())
        };
        let ours: Vec<&PortOf> = self.ports.iter().filter(is_ours).collect();
        let names = || {
            let names = ours.iter().map(|port| format!("`{}`", port.name.as_deref().unwrap_or_default()));
            names.collect::<Vec<_>>().join(", ")
        };
        let slice = &self.metadata.name;
        match (name, &ours[..]) {
            (_, []) if self.ports.is_empty() => Ok(None),
            (Some(name), _) => match ours.iter().find(|port| port.name.as_deref() == Some(name.as_str())) {
                Some(port) => Ok(port.port),
                None => Err(format!("the slice {slice} has no {protocol} port `{name}`; it has {}", names())),
            },
            (None, [one]) => Ok(one.port),
            (None, []) => Err(format!("the slice {slice} has no {protocol} port")),
            (None, _) => Err(format!(
                "the slice {slice} has several {protocol} ports: `port_name` has to say which of {}",
                names()
            )),
        }
    }
}

impl Endpoint {
    /// All addresses of one are as good as each other, and consumers are to take the first.
    fn address(&self) -> Option<IpAddr> {
        self.addresses.first()?.parse().ok()
    }

    /// What tells its pod from all others; `None` if it says nothing of a pod.
    fn pod(&self) -> Option<&str> {
        self.target.as_ref()?.uid.as_deref()
    }

    /// `None`: it is as good as gone.
    fn state(&self) -> Option<AdminState> {
        let Conditions { ready, serving, terminating } = self.conditions;
        // What is not said is as in "Conditions" of the API's reference.
        let ready = ready.unwrap_or(true);
        match (ready, serving.unwrap_or(ready), terminating.unwrap_or(false)) {
            (true, ..) => Some(AdminState::Ready),
            (false, false, true) => None,
            (false, ..) => Some(AdminState::Drain),
        }
    }

    /// It ends, and still answers.
    fn serves_to_the_end(&self) -> bool {
        self.conditions.terminating == Some(true) && self.conditions.serving == Some(true)
    }
}

#[cfg(test)]
mod tests;
