//! The other side of the socket: what `lbctl` calls.

use std::io;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, Uri};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::{
    AddFault, ApiError, Applied, Apply, BackendPath, Backends, ClearFaults, Detached, Diff, DiffQuery,
    ErrorCode, Event, EventQuery, Explain, Explanation, Faults, FlowQuery, Flows, History, OrderRollout,
    Rollback, RolledBack, RolloutStatus, ServiceQuery, Services, SetHealth, SetSplit, SetState, SetWeight,
    StartRollout, Status, Trace, Traced, Undo, Validate, Validated,
};

use crate::rollout::engine::Order;

/// Calls an agent. Each call has a connection of its own, so that a client may outlive the agent.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
    patience: Duration,
}

/// Why a call gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody is there.
    #[error("cannot reach the agent on {}: {source}", socket.display())]
    Unreachable {
        /// Where it was looked for.
        socket: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It did not answer.
    #[error("the agent on {} did not answer within {} ms", socket.display(), patience.as_millis())]
    Silent {
        /// Where it was asked.
        socket: PathBuf,
        /// How long it was waited for.
        patience: Duration,
    },
    /// It broke off, or its answer is not one.
    #[error("the answer of the agent on {} cannot be understood: {what}", socket.display())]
    Broken {
        /// Where it was asked.
        socket: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// It refused, or failed.
    #[error(transparent)]
    Refused(#[from] ApiError),
}

type Result<T> = std::result::Result<T, ClientError>;

impl Client {
    /// How long an answer is waited for unless another time is given.
    pub const PATIENCE: Duration = Duration::from_secs(60);

    /// Of the agent on this socket.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into(), patience: Self::PATIENCE }
    }

    /// The same, waiting so long for each answer.
    #[must_use]
    pub fn with_patience(&self, patience: Duration) -> Self {
        Self { socket: self.socket.clone(), patience }
    }

    /// Where the agent is looked for.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// `GET /v1/status`, page by page: what is not of the services is as the last page has it.
    pub async fn status(&self) -> Result<Status> {
        self.pages("/v1/status", &ServiceQuery::default()).await
    }

    /// `GET /v1/services`, page by page.
    pub async fn services(&self, query: &ServiceQuery) -> Result<Services> {
        self.pages("/v1/services", query).await
    }

    /// `GET /v1/backends`, page by page.
    pub async fn backends(&self, query: &ServiceQuery) -> Result<Backends> {
        self.pages("/v1/backends", query).await
    }

    /// All pages from this one on, as one. Begins again where the configuration has changed in between.
    async fn pages<P: Page>(&self, path: &str, query: &ServiceQuery) -> Result<P> {
        const PATIENCE: usize = 5;
        let mut query = query.clone();
        let (first, mut all, mut again) = (query.after.clone(), None::<P>, 0);
        loop {
            let page: P = match self.get(asking(path, &query)).await {
                Err(ClientError::Refused(error))
                    if error.kind() == Some(ErrorCode::RevisionConflict)
                        && again < PATIENCE
                        && query.after != first =>
                {
                    again += 1;
                    (query.after, all) = (first.clone(), None);
                    continue;
                }
                page => page?,
            };
            let next = page.next().clone();
            let whole = match all.take() {
                Some(before) => page.behind(before),
                None => page,
            };
            match next {
                Some(_) => query.after = next,
                None => return Ok(whole),
            }
            all = Some(whole);
        }
    }

    /// `GET /v1/flows`
    pub async fn flows(&self, query: &FlowQuery) -> Result<Flows> {
        self.get(asking("/v1/flows", query)).await
    }

    /// `GET /v1/events`
    pub async fn events(&self, query: &EventQuery) -> Result<EventStream> {
        let path = asking("/v1/events", query);
        let response = self.in_time(self.send(Method::GET, path, Bytes::new())).await?;
        let response = self.succeeded(response).await?;
        Ok(Lines::of(&self.socket, response))
    }

    /// `GET /v1/services/{service}/history`
    pub async fn history(&self, service: &str) -> Result<History> {
        self.get(format!("{}/history", of_service(service))).await
    }

    /// `GET /v1/services/{service}/diff`
    pub async fn diff(&self, service: &str, query: &DiffQuery) -> Result<Diff> {
        self.get(asking(&format!("{}/diff", of_service(service)), query)).await
    }

    /// `POST /v1/services/{service}/undo`
    pub async fn undo(&self, service: &str, request: &Undo) -> Result<Applied> {
        self.call(Method::POST, format!("{}/undo", of_service(service)), request).await
    }

    /// `POST /v1/services/{service}/rollout`
    pub async fn start_rollout(&self, service: &str, request: &StartRollout) -> Result<RolloutStatus> {
        self.call(Method::POST, format!("{}/rollout", of_service(service)), request).await
    }

    /// `GET /v1/services/{service}/rollout`
    pub async fn rollout(&self, service: &str) -> Result<RolloutStatus> {
        self.get(format!("{}/rollout", of_service(service))).await
    }

    /// `POST /v1/services/{service}/rollout/{order}`
    pub async fn order_rollout(
        &self,
        service: &str,
        order: Order,
        request: &OrderRollout,
    ) -> Result<RolloutStatus> {
        let path = format!("{}/rollout/{}", of_service(service), order.as_str());
        self.call(Method::POST, path, request).await
    }

    /// `POST /v1/validate`
    pub async fn validate(&self, request: &Validate) -> Result<Validated> {
        self.call(Method::POST, "/v1/validate".to_owned(), request).await
    }

    /// `POST /v1/apply`
    pub async fn apply(&self, request: &Apply) -> Result<Applied> {
        self.call(Method::POST, "/v1/apply".to_owned(), request).await
    }

    /// `POST /v1/explain`
    pub async fn explain(&self, request: &Explain) -> Result<Explanation> {
        self.call(Method::POST, "/v1/explain".to_owned(), request).await
    }

    /// `POST /v1/trace`
    pub async fn trace(&self, request: &Trace) -> Result<Lines<Traced>> {
        let body = serde_json::to_vec(request).map_err(|error| self.broken(error))?;
        let sent = self.send(Method::POST, "/v1/trace".to_owned(), body.into());
        let response = self.succeeded(self.in_time(sent).await?).await?;
        Ok(Lines::of(&self.socket, response))
    }

    /// `POST /v1/detach`
    pub async fn detach(&self) -> Result<Detached> {
        self.call(Method::POST, "/v1/detach".to_owned(), &serde_json::json!({})).await
    }

    /// `PUT /v1/services/{service}/split`
    pub async fn set_split(&self, service: &str, request: &SetSplit) -> Result<Applied> {
        self.call(Method::PUT, format!("{}/split", of_service(service)), request).await
    }

    /// `GET /v1/faults`
    pub async fn faults(&self) -> Result<Faults> {
        self.get("/v1/faults".to_owned()).await
    }

    /// `POST /v1/services/{service}/faults`
    pub async fn add_fault(&self, service: &str, request: &AddFault) -> Result<Faults> {
        self.call(Method::POST, format!("{}/faults", of_service(service)), request).await
    }

    /// `POST /v1/faults/clear`
    pub async fn clear_faults(&self, request: &ClearFaults) -> Result<Faults> {
        self.call(Method::POST, "/v1/faults/clear".to_owned(), request).await
    }

    /// `POST /v1/services/{service}/rollback`
    pub async fn rollback(&self, service: &str, request: &Rollback) -> Result<RolledBack> {
        self.call(Method::POST, format!("{}/rollback", of_service(service)), request).await
    }

    /// `PUT …/backends/{backend}/weight`
    pub async fn set_weight(&self, backend: &BackendPath, request: &SetWeight) -> Result<Applied> {
        self.call(Method::PUT, format!("{}/weight", of_backend(backend)), request).await
    }

    /// `PUT …/backends/{backend}/state`
    pub async fn set_state(&self, backend: &BackendPath, request: &SetState) -> Result<Applied> {
        self.call(Method::PUT, format!("{}/state", of_backend(backend)), request).await
    }

    /// `PUT …/backends/{backend}/health`
    pub async fn set_health(&self, backend: &BackendPath, request: &SetHealth) -> Result<Applied> {
        self.call(Method::PUT, format!("{}/health", of_backend(backend)), request).await
    }

    async fn get<T: DeserializeOwned>(&self, path: String) -> Result<T> {
        self.answer(Method::GET, path, Bytes::new()).await
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: String,
        request: &impl Serialize,
    ) -> Result<T> {
        let body = serde_json::to_vec(request).map_err(|error| self.broken(error))?;
        self.answer(method, path, body.into()).await
    }

    async fn answer<T: DeserializeOwned>(&self, method: Method, path: String, body: Bytes) -> Result<T> {
        self.in_time(async {
            let response = self.send(method, path, body).await?;
            let response = self.succeeded(response).await?;
            let answer = self.whole(response).await?;
            serde_json::from_slice(&answer).map_err(|error| self.broken(error))
        })
        .await
    }

    async fn in_time<T>(&self, call: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::time::timeout(self.patience, call).await.unwrap_or_else(|_| {
            Err(ClientError::Silent { socket: self.socket.clone(), patience: self.patience })
        })
    }

    async fn send(&self, method: Method, path: String, body: Bytes) -> Result<Response<Incoming>> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|source| ClientError::Unreachable { socket: self.socket.clone(), source })?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| self.broken(error))?;
        // It ends with the request; what it ran into, the request runs into as well.
        tokio::spawn(connection);
        let path: Uri = path.parse().map_err(|error| self.broken(error))?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "lbd")
            .header("content-type", "application/json")
            .body(Full::new(body))
            .map_err(|error| self.broken(error))?;
        sender.send_request(request).await.map_err(|error| self.broken(error))
    }

    async fn succeeded(&self, response: Response<Incoming>) -> Result<Response<Incoming>> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = self.whole(response).await?;
        let error: ApiError = serde_json::from_slice(&body)
            .map_err(|_| self.broken(format_args!("status {status} without an error of the API")))?;
        Err(error.into())
    }

    async fn whole(&self, response: Response<Incoming>) -> Result<Bytes> {
        let body = response.into_body().collect().await.map_err(|error| self.broken(error))?;
        Ok(body.to_bytes())
    }

    fn broken(&self, what: impl ToString) -> ClientError {
        ClientError::Broken { socket: self.socket.clone(), what: what.to_string() }
    }
}

/// An answer that comes in pages.
trait Page: DeserializeOwned {
    /// What the next page begins after, if there is one.
    fn next(&self) -> &Option<String>;

    /// With what came before it.
    fn behind(self, before: Self) -> Self;
}

macro_rules! pages {
    ($($answer:ident: $list:ident),+) => { $(
        impl Page for $answer {
            fn next(&self) -> &Option<String> {
                &self.next
            }

            fn behind(mut self, mut before: Self) -> Self {
                before.$list.append(&mut self.$list);
                Self { $list: before.$list, ..self }
            }
        }
    )+ };
}

pages!(Status: services, Services: services, Backends: backends);

/// Events as they come.
pub type EventStream = Lines<Event>;

/// Values as they come, a line each.
#[derive(Debug)]
pub struct Lines<T> {
    socket: PathBuf,
    body: Incoming,
    unread: Vec<u8>,
    of: PhantomData<T>,
}

impl<T: DeserializeOwned> Lines<T> {
    fn of(socket: &Path, response: Response<Incoming>) -> Self {
        Self { socket: socket.to_owned(), body: response.into_body(), unread: Vec::new(), of: PhantomData }
    }

    /// The next one; `None` when there is no more, which for a stream that follows means that the agent ended it.
    ///
    /// # Errors
    /// If the connection breaks or a line is something else.
    pub async fn next(&mut self) -> Result<Option<T>> {
        loop {
            if let Some(end) = self.unread.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=end).collect();
                return serde_json::from_slice(&line).map(Some).map_err(|error| self.broken(error));
            }
            match self.body.frame().await {
                None if self.unread.is_empty() => return Ok(None),
                None => return Err(self.broken("it ends in the middle of a line")),
                Some(Err(error)) => return Err(self.broken(error)),
                Some(Ok(frame)) => self.unread.extend(frame.into_data().unwrap_or_default()),
            }
        }
    }

    fn broken(&self, what: impl ToString) -> ClientError {
        ClientError::Broken { socket: self.socket.clone(), what: what.to_string() }
    }
}

fn of_service(service: &str) -> String {
    format!("/v1/services/{}", escaped(service))
}

fn of_backend(path: &BackendPath) -> String {
    let BackendPath { service, pool, backend } = path;
    format!("{}/pools/{}/backends/{}", of_service(service), escaped(pool), escaped(backend))
}

/// With a query. All members of a query are text, numbers or booleans.
fn asking(path: &str, query: &impl Serialize) -> String {
    let Ok(serde_json::Value::Object(members)) = serde_json::to_value(query) else {
        return path.to_owned();
    };
    let pairs = members.into_iter().map(|(name, value)| match value {
        serde_json::Value::String(text) => format!("{name}={}", escaped(&text)),
        other => format!("{name}={other}"),
    });
    let pairs: Vec<String> = pairs.collect();
    if pairs.is_empty() { path.to_owned() } else { format!("{path}?{}", pairs.join("&")) }
}

/// As one segment of a path (RFC 3986, 2): what is not unreserved is percent-encoded.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                escaped.push(char::from(byte));
            }
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_one_segment_of_the_path() {
        let path = BackendPath {
            service: "checkout".to_owned(),
            pool: "v 1/2?".to_owned(),
            backend: "[2001:db8::11]:8443".to_owned(),
        };
        assert_eq!(
            of_backend(&path),
            "/v1/services/checkout/pools/v%201%2F2%3F/backends/%5B2001%3Adb8%3A%3A11%5D%3A8443"
        );
    }

    #[test]
    fn a_query_has_what_was_given() {
        let query = EventQuery { after: Some(7), service: Some("a&b".to_owned()), follow: true };
        assert_eq!(asking("/v1/events", &query), "/v1/events?after=7&follow=true&service=a%26b");
        assert_eq!(asking("/v1/services", &ServiceQuery::default()), "/v1/services");
    }
}
