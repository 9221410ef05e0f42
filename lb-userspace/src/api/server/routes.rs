//! The paths of the API, and what each one does.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Extension, Path, State};
use axum::http::{Method, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use futures_util::stream::{self, Stream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast, watch};

use super::super::{
    Answer, Api, ApiError, Applied, Apply, BackendPath, Backends, Call, Control, Detached, Diff, DiffQuery,
    ErrorCode, Event, EventQuery, Explain, Explanation, FlowQuery, Flows, History, OrderRollout, Rollback,
    RolledBack, RolloutStatus, ServiceQuery, Services, SetHealth, SetSplit, SetState, SetWeight, StartRollout,
    Status, Undo, Validate, Validated,
};
use super::body::{Asked, Body, LARGEST};
use crate::config::{self, Loaded};
use crate::rollout::engine::Order;

/// What every request needs.
pub(super) struct App<C> {
    pub control: Arc<C>,
    /// Turns true when the server is to end.
    pub stopped: watch::Receiver<bool>,
    /// Places for those who follow events.
    pub followers: Arc<Semaphore>,
}

type Shared<C> = State<Arc<App<C>>>;
type Reply<T> = Answer<Json<T>>;

pub(super) fn all<C: Control>(app: App<C>) -> Router {
    Router::new()
        .route("/v1/status", get(status::<C>))
        .route("/v1/services", get(services::<C>))
        .route("/v1/services/{service}/history", get(history::<C>))
        .route("/v1/services/{service}/diff", get(diff::<C>))
        .route("/v1/services/{service}/undo", post(undo::<C>))
        .route("/v1/services/{service}/split", put(set_split::<C>))
        .route("/v1/services/{service}/rollback", post(rollback::<C>))
        .route("/v1/services/{service}/rollout", get(rollout::<C>).post(start_rollout::<C>))
        .route("/v1/services/{service}/rollout/{order}", post(order_rollout::<C>))
        .route("/v1/backends", get(backends::<C>))
        .route(&backend("weight"), put(set_weight::<C>))
        .route(&backend("state"), put(set_state::<C>))
        .route(&backend("health"), put(set_health::<C>))
        .route("/v1/flows", get(flows::<C>))
        .route("/v1/events", get(events::<C>))
        .route("/v1/validate", post(validate))
        .route("/v1/apply", post(apply::<C>))
        .route("/v1/explain", post(explain::<C>))
        .route("/v1/detach", post(detach::<C>))
        .fallback(no_such_route)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(LARGEST))
        .with_state(Arc::new(app))
}

fn backend(value: &str) -> String {
    format!("/v1/services/{{service}}/pools/{{pool}}/backends/{{backend}}/{value}")
}

async fn status<C: Control>(State(app): Shared<C>) -> Reply<Status> {
    app.control.status().await.map(Json)
}

async fn services<C: Control>(State(app): Shared<C>, Asked(query): Asked<ServiceQuery>) -> Reply<Services> {
    let services = app.control.services(query.service).await?;
    Ok(Json(Services { api: Api::V1, services }))
}

async fn backends<C: Control>(State(app): Shared<C>, Asked(query): Asked<ServiceQuery>) -> Reply<Backends> {
    let services = app.control.services(query.service).await?;
    Ok(Json(Backends::of(services)))
}

async fn flows<C: Control>(State(app): Shared<C>, Asked(query): Asked<FlowQuery>) -> Reply<Flows> {
    app.control.flows(query).await.map(Json)
}

async fn history<C: Control>(State(app): Shared<C>, Path(service): Path<String>) -> Reply<History> {
    app.control.history(service).await.map(Json)
}

async fn diff<C: Control>(
    State(app): Shared<C>,
    Path(service): Path<String>,
    Asked(query): Asked<DiffQuery>,
) -> Reply<Diff> {
    app.control.diff(service, query).await.map(Json)
}

async fn undo<C: Control>(
    State(app): Shared<C>,
    Extension(call): Extension<Call>,
    Path(service): Path<String>,
    Body(request): Body<Undo>,
) -> Reply<Applied> {
    app.control.undo(call, service, request).await.map(Json)
}

async fn explain<C: Control>(State(app): Shared<C>, Body(request): Body<Explain>) -> Reply<Explanation> {
    app.control.explain(request).await.map(Json)
}

async fn rollback<C: Control>(
    State(app): Shared<C>,
    Extension(call): Extension<Call>,
    Path(service): Path<String>,
    Body(request): Body<Rollback>,
) -> Reply<RolledBack> {
    app.control.rollback(call, service, request).await.map(Json)
}

async fn rollout<C: Control>(State(app): Shared<C>, Path(service): Path<String>) -> Reply<RolloutStatus> {
    app.control.rollout(service).await.map(Json)
}

async fn start_rollout<C: Control>(
    State(app): Shared<C>,
    Extension(call): Extension<Call>,
    Path(service): Path<String>,
    Body(request): Body<StartRollout>,
) -> Reply<RolloutStatus> {
    app.control.start_rollout(call, service, request).await.map(Json)
}

async fn order_rollout<C: Control>(
    State(app): Shared<C>,
    Extension(call): Extension<Call>,
    Path((service, order)): Path<(String, String)>,
    Body(request): Body<OrderRollout>,
) -> Reply<RolloutStatus> {
    let order = Order::ALL.iter().copied().find(|known| known.as_str() == order).ok_or_else(|| {
        let known: Vec<&str> = Order::ALL.iter().map(|order| order.as_str()).collect();
        ApiError::new(ErrorCode::NoSuchRoute, format!("a rollout takes no order `{order}`"))
            .remedy(format!("it takes {}", known.join(", ")))
    })?;
    app.control.order_rollout(call, service, order, request).await.map(Json)
}

async fn set_split<C: Control>(
    State(app): Shared<C>,
    Extension(call): Extension<Call>,
    Path(service): Path<String>,
    Body(request): Body<SetSplit>,
) -> Reply<Applied> {
    app.control.set_split(call, service, request).await.map(Json)
}

async fn set_weight<C: Control>(
    State(app): Shared<C>,
    Extension(call): Extension<Call>,
    Path(backend): Path<BackendPath>,
    Body(request): Body<SetWeight>,
) -> Reply<Applied> {
    app.control.set_weight(call, backend, request).await.map(Json)
}

async fn set_state<C: Control>(
    State(app): Shared<C>,
    Extension(call): Extension<Call>,
    Path(backend): Path<BackendPath>,
    Body(request): Body<SetState>,
) -> Reply<Applied> {
    app.control.set_state(call, backend, request).await.map(Json)
}

async fn set_health<C: Control>(
    State(app): Shared<C>,
    Extension(call): Extension<Call>,
    Path(backend): Path<BackendPath>,
    Body(request): Body<SetHealth>,
) -> Reply<Applied> {
    app.control.set_health(call, backend, request).await.map(Json)
}

async fn validate(Body(request): Body<Validate>) -> Reply<Validated> {
    let (valid, found) = match parse(request.text, request.name).await? {
        Ok(loaded) => (true, loaded.warnings),
        Err(found) => (false, found),
    };
    Ok(Json(Validated { api: Api::V1, valid, diagnostics: found.reports() }))
}

async fn apply<C: Control>(
    State(app): Shared<C>,
    Extension(call): Extension<Call>,
    Body(request): Body<Apply>,
) -> Reply<Applied> {
    let loaded = parse(request.text.clone(), request.name.clone())
        .await?
        .map_err(|found| ApiError::invalid(&request.name, &found))?;
    let diagnostics = loaded.warnings.reports();
    let applied = app.control.apply(call, loaded, request).await?;
    Ok(Json(Applied { diagnostics, ..applied }))
}

/// A large file takes long enough to hold up everyone else.
async fn parse(text: String, name: String) -> Answer<Result<Loaded, config::Diagnostics>> {
    tokio::task::spawn_blocking(move || config::parse(&text, &name)).await.map_err(|error| {
        ApiError::new(ErrorCode::Internal, format!("the configuration could not be read: {error}"))
            .remedy("this is a bug; the agent's log has the place")
    })
}

async fn detach<C: Control>(State(app): Shared<C>, Extension(call): Extension<Call>) -> Reply<Detached> {
    app.control.detach(call).await.map(Json)
}

async fn no_such_route(method: Method, uri: Uri) -> ApiError {
    ApiError::new(ErrorCode::NoSuchRoute, format!("the API has no {}", uri.path()))
        .about(format!("{method} {}", uri.path()))
        .remedy("every path begins with /v1/; GET /v1/status is one")
}

async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    ApiError::new(ErrorCode::WrongMethod, format!("{} does not take {method}", uri.path()))
        .about(format!("{method} {}", uri.path()))
        .remedy("lists are read with GET, values are set with PUT, and everything else is done with POST")
}

async fn events<C: Control>(State(app): Shared<C>, Asked(query): Asked<EventQuery>) -> Answer<Response> {
    let place = match query.follow {
        true => Some(Arc::clone(&app.followers).try_acquire_owned().map_err(|_| too_many())?),
        false => None,
    };
    let about = query.service;
    let (past, live) = app.control.events(query.after.unwrap_or(0));
    let past: Vec<u8> = past.iter().filter(|event| is_about(event, &about)).flat_map(line).collect();
    let kind = [(header::CONTENT_TYPE, "application/jsonl")];
    let Some(place) = place else {
        return Ok((kind, past).into_response());
    };
    let follower = Follower { live, about, stopped: app.stopped.clone(), _place: place };
    let body = axum::body::Body::from_stream(follower.lines(past));
    Ok((kind, body).into_response())
}

fn too_many() -> ApiError {
    ApiError::new(ErrorCode::TooManyFollowers, "too many clients follow the events already")
        .remedy("end some of them, or ask for events now and then with ?after=")
}

struct Follower {
    live: broadcast::Receiver<Event>,
    about: Option<String>,
    stopped: watch::Receiver<bool>,
    _place: OwnedSemaphorePermit,
}

impl Follower {
    /// Ends when the server does, or when the client is too far behind: it then asks again for what came after the last
    /// event it saw.
    fn lines(self, past: Vec<u8>) -> impl Stream<Item = Result<Bytes, Infallible>> {
        stream::unfold((self, Some(past)), async |(mut follower, past)| {
            let lines = match past {
                Some(past) => past,
                None => follower.next().await?,
            };
            Some((Ok(lines.into()), (follower, None)))
        })
    }

    async fn next(&mut self) -> Option<Vec<u8>> {
        loop {
            let event = tokio::select! {
                _ = self.stopped.wait_for(|stopped| *stopped) => return None,
                event = self.live.recv() => event.ok()?,
            };
            if is_about(&event, &self.about) {
                return Some(line(&event));
            }
        }
    }
}

fn is_about(event: &Event, service: &Option<String>) -> bool {
    service.is_none() || event.service == *service
}

fn line(event: &Event) -> Vec<u8> {
    let mut line = serde_json::to_vec(event).unwrap_or_default();
    line.push(b'\n');
    line
}
