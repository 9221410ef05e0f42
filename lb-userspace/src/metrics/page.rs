//! The status page: what people look at. It reads, and nothing on it can change anything.
//!
//! The page is three files, compiled in. It asks for nothing from elsewhere, and its policy forbids that to whatever might get
//! into it; its script makes text of everything that it is told. A stream of server-sent events brings the whole state once a
//! second, so that a reader who was cut off misses nothing by coming back.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{Query, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures_util::stream;
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, watch};

use super::listener::App;
use crate::agent::Agent;
use crate::api::{Event, RolloutStatus, ServiceStatus, Status};

/// Pages that may be open at a time: connections that scrapers need are not theirs.
const READERS: usize = 16;
/// How often the state is told.
const PERIOD: Duration = Duration::from_secs(1);
/// Services on a page; the others are found by their names.
const SERVICES: usize = 50;
/// Events on a page.
const EVENTS: usize = 50;
/// Nothing from elsewhere, nothing inline but the icon, no form, no frame.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// What a page shows.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Glance {
    status: Status,
    rollouts: Vec<RolloutStatus>,
    /// The newest first.
    events: Vec<Event>,
    /// Services that are left out.
    more: usize,
}

/// Which services.
#[derive(Debug, Default, Deserialize)]
struct Filter {
    /// A part of their names.
    #[serde(default)]
    filter: String,
}

/// What the pages need.
#[derive(Clone)]
struct Page {
    app: App,
    readers: Arc<Semaphore>,
    stopped: watch::Receiver<bool>,
    /// The newest state, so that many pages cost the agent as much as one.
    latest: Arc<Mutex<Option<Latest>>>,
}

/// A state, and when the agent told it.
type Latest = (Instant, Arc<Glance>);

/// The page at `/`, and what it is made of.
pub(super) fn routes(app: App, address: SocketAddr, stopped: watch::Receiver<bool>) -> Router {
    let page = Page { app, readers: Arc::new(Semaphore::new(READERS)), stopped, latest: Arc::default() };
    let file = |kind: &'static str, text: &'static str| {
        get(move || async move { ([(header::CONTENT_TYPE, kind)], text) })
    };
    Router::new()
        .route("/", file("text/html; charset=utf-8", include_str!("page/index.html")))
        .route("/status.css", file("text/css; charset=utf-8", include_str!("page/status.css")))
        .route("/status.js", file("text/javascript; charset=utf-8", include_str!("page/status.js")))
        .route("/stream", get(stream))
        .layer(middleware::from_fn(move |request, next| guarded(address.ip(), request, next)))
        .with_state(page)
}

/// Answers those only who mean this host, and says what a browser may do with the answer.
async fn guarded(ours: IpAddr, request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    if ours.is_loopback() && !is_local(host) {
        // A name that somebody else's server has let point here (DNS rebinding): its scripts would read along.
        let why = "this page is for this host: ask for it by its address or as localhost\n";
        return (StatusCode::MISDIRECTED_REQUEST, why).into_response();
    }
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        headers.insert(name, header::HeaderValue::from_static(value));
    }
    response
}

/// Whether a `Host` is an address or `localhost`, with a port or without.
fn is_local(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) && !name.ends_with(':') => name,
        _ => host,
    };
    let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    bare.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok()
}

async fn stream(State(page): State<Page>, Query(query): Query<Filter>) -> Response {
    let Ok(place) = Arc::clone(&page.readers).try_acquire_owned() else {
        return (StatusCode::SERVICE_UNAVAILABLE, "too many pages are open already\n").into_response();
    };
    let kind = [(header::CONTENT_TYPE, "text/event-stream")];
    let reader = Reader { page, filter: query.filter, first: true, _place: place };
    let body = stream::unfold(reader, async |mut reader| {
        let event = reader.next().await?;
        Some((Ok::<_, Infallible>(event), reader))
    });
    (kind, Body::from_stream(body)).into_response()
}

/// An open page.
struct Reader {
    page: Page,
    filter: String,
    first: bool,
    _place: OwnedSemaphorePermit,
}

impl Reader {
    /// The next event. Ends when the server does; an agent that does not answer is told as a comment, so that one who waits
    /// knows that there is somebody.
    async fn next(&mut self) -> Option<String> {
        if !std::mem::take(&mut self.first) {
            tokio::select! {
                _ = self.page.stopped.wait_for(|stopped| *stopped) => return None,
                () = tokio::time::sleep(PERIOD) => {}
            }
        }
        let Some(all) = self.page.glance().await else { return Some(": the agent is busy\n\n".to_owned()) };
        let text = serde_json::to_string(&all.of(&self.filter)).ok()?;
        // JSON in one line: what it holds cannot end the event.
        Some(format!("retry: 2000\nevent: state\ndata: {text}\n\n"))
    }
}

impl Page {
    async fn glance(&self) -> Option<Arc<Glance>> {
        let mut latest = self.latest.lock().await;
        if let Some((at, glance)) = latest.as_ref()
            && at.elapsed() < PERIOD / 2
        {
            return Some(Arc::clone(glance));
        }
        let glance = Arc::new(self.app.ask(|agent| agent.glance()).await.ok()?);
        *latest = Some((Instant::now(), Arc::clone(&glance)));
        Some(glance)
    }
}

impl Glance {
    /// With the services only whose names contain that, and not too many of them.
    fn of(&self, filter: &str) -> Self {
        let filter = filter.to_lowercase();
        let matches = |service: &&ServiceStatus| service.name.to_lowercase().contains(&filter);
        let all: Vec<_> = self.status.services.iter().filter(matches).collect();
        let services: Vec<_> = all.iter().take(SERVICES).map(|&service| service.clone()).collect();
        let shown = |rollout: &&RolloutStatus| services.iter().any(|service| service.name == rollout.service);
        let rollouts = self.rollouts.iter().filter(shown).cloned().collect();
        let more = all.len() - services.len();
        Self {
            status: Status { services, ..self.status.clone() },
            rollouts,
            events: self.events.clone(),
            more,
        }
    }
}

impl Agent {
    /// What the page shows, of all services.
    fn glance(&self) -> Glance {
        let mut rollouts = self.all_rollouts();
        for step in rollouts.iter_mut().flat_map(|rollout| &mut rollout.plan.steps) {
            // Commands and addresses of gates are between the operator and the agent.
            step.gate = None;
        }
        let mut events = self.newest_events(EVENTS);
        events.reverse();
        Glance { status: self.whole(), rollouts, events, more: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_only_points_here_is_told_from_this_host() {
        for local in ["localhost", "LocalHost:9650", "127.0.0.1:9650", "[::1]:9650", "[::1]", "10.0.0.1"] {
            assert!(is_local(local), "{local}");
        }
        for other in [
            "",
            "evil.example",
            "evil.example:9650",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "[::1",
        ] {
            assert!(!is_local(other), "{other}");
        }
    }

    /// What the policy forbids would only be seen by whoever has the page open.
    #[test]
    fn the_page_keeps_its_own_policy() {
        let (page, style, script) = (
            include_str!("page/index.html"),
            include_str!("page/status.css"),
            include_str!("page/status.js"),
        );
        for inline in ["<style", "style=", "onclick", "onload", "<form", "<iframe"] {
            assert!(!page.contains(inline), "{inline}");
        }
        assert_eq!(page.matches("<script").count(), page.matches("<script src=\"status.js\"").count());
        for text in [page, style, script] {
            let addresses = text.matches("http").count();
            let of_svg = text.matches("http://www.w3.org/2000/svg").count();
            assert_eq!(addresses, of_svg, "the namespace of SVG is all that looks like an address");
            assert!(!text.contains("@import") && !text.contains("url("));
        }
        for unsafe_way in
            ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function("]
        {
            assert!(!script.contains(unsafe_way), "{unsafe_way}");
        }
        assert!(
            !script.contains("fetch(") && !script.contains("XMLHttpRequest"),
            "it follows, and asks nothing"
        );
    }
}
