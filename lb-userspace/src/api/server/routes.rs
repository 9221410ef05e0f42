//! The paths of the API, and what each one does.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Extension, Path, State};
use axum::http::{Method, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use futures_util::stream::{self, Stream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast, watch};

use super::super::{
    AddFault, Answer, Api, ApiError, Applied, Apply, BackendPath, Backends, Call, ClearFaults, Control,
    Detached, Diff, DiffQuery, ErrorCode, Event, EventQuery, Explain, Explanation, Faults, FlowQuery, Flows,
    History, OrderRollout, Rollback, RolledBack, RolloutStatus, ServiceQuery, Services, SetHealth, SetSplit,
    SetState, SetWeight, StartRollout, Status, Trace, Traced, Undo, Validate, Validated,
};
use super::body::{Asked, Body, LARGEST};
use super::openapi::{self, JSON_LINES, Route};
use crate::config::{self, Loaded};
use crate::events;
use crate::rollout::engine::Order;

/// What every request needs.
pub(super) struct App<C> {
    pub control: Arc<C>,
    /// Turns true when the server is to end.
    pub stopped: watch::Receiver<bool>,
    /// Places for those who follow events.
    pub followers: Arc<Semaphore>,
    /// The OpenAPI document.
    document: Bytes,
}

type Shared<C> = State<Arc<App<C>>>;
type Reply<T> = Answer<Json<T>>;

pub(super) fn all<C: Control>(control: Arc<C>, stopped: watch::Receiver<bool>, followers: usize) -> Router {
    let table = table();
    let document = openapi::document(&table).to_string().into();
    let app = App { control, stopped, followers: Arc::new(Semaphore::new(followers)), document };
    openapi::router(table)
        .fallback(no_such_route)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(LARGEST))
        .with_state(Arc::new(app))
}

/// Every route there is.
fn table<C: Control>() -> Vec<Route<Arc<App<C>>>> {
    vec![
        Route::get::<Status, _>(
            "/v1/status",
            "The whole at a glance, and a page of the services.",
            status::<C>,
        )
        .asks::<ServiceQuery>(),
        Route::get::<Services, _>("/v1/services", "A page of the services, or one of them.", services::<C>)
            .asks::<ServiceQuery>(),
        Route::get::<History, _>("/v1/services/{service}/history", "A service's revisions.", history::<C>),
        Route::get::<Diff, _>(
            "/v1/services/{service}/diff",
            "What differs between two revisions.",
            diff::<C>,
        )
        .asks::<DiffQuery>(),
        Route::post::<Undo, Applied, _>("/v1/services/{service}/undo", "Back to a revision.", undo::<C>),
        Route::put::<SetSplit, Applied, _>(
            "/v1/services/{service}/split",
            "The canary's share.",
            set_split::<C>,
        ),
        Route::post::<Rollback, RolledBack, _>(
            "/v1/services/{service}/rollback",
            "Takes every new flow off the canary, at once.",
            rollback::<C>,
        ),
        Route::get::<RolloutStatus, _>(
            "/v1/services/{service}/rollout",
            "Where the rollout stands, or how the last one ended.",
            rollout::<C>,
        ),
        Route::post::<StartRollout, RolloutStatus, _>(
            "/v1/services/{service}/rollout",
            "Begins to roll a pool out.",
            start_rollout::<C>,
        ),
        Route::post::<OrderRollout, RolloutStatus, _>(
            "/v1/services/{service}/rollout/{order}",
            "Has a say in the rollout that is under way: pause, resume, promote, promote-full, promote-force, abort, retry, approve.",
            order_rollout::<C>,
        ),
        Route::get::<Faults, _>("/v1/faults", "The faults that are injected.", faults::<C>),
        Route::post::<AddFault, Faults, _>(
            "/v1/services/{service}/faults",
            "Injects a fault: a share of new connections is reset or dropped, for a while.",
            add_fault::<C>,
        ),
        Route::post::<ClearFaults, Faults, _>(
            "/v1/faults/clear",
            "Takes a fault away, or all.",
            clear_faults::<C>,
        ),
        Route::get::<Backends, _>(
            "/v1/backends",
            "A page of the backends, or those of one service.",
            backends::<C>,
        )
        .asks::<ServiceQuery>(),
        Route::put::<SetWeight, Applied, _>(
            "/v1/services/{service}/pools/{pool}/backends/{backend}/weight",
            "A backend's weight.",
            set_weight::<C>,
        ),
        Route::put::<SetState, Applied, _>(
            "/v1/services/{service}/pools/{pool}/backends/{backend}/state",
            "A backend's administrative state.",
            set_state::<C>,
        ),
        Route::put::<SetHealth, Applied, _>(
            "/v1/services/{service}/pools/{pool}/backends/{backend}/health",
            "Overrides a backend's health checks, or stops doing so.",
            set_health::<C>,
        ),
        Route::get::<Flows, _>("/v1/flows", "Some tracked flows.", flows::<C>).asks::<FlowQuery>(),
        Route::get::<Event, _>("/v1/events", "What happened, and with `follow` what happens.", events::<C>)
            .asks::<EventQuery>()
            .lines(),
        Route::post::<Validate, Validated, _>("/v1/validate", "Checks a configuration.", validate),
        Route::post::<Apply, Applied, _>("/v1/apply", "Converges on a configuration.", apply::<C>),
        Route::post::<Explain, Explanation, _>("/v1/explain", "Where a flow goes, and why.", explain::<C>),
        Route::post::<Trace, Traced, _>(
            "/v1/trace",
            "Tells of packets as they go through, until the time is over or the client goes.",
            trace::<C>,
        )
        .lines(),
        Route::trigger::<Detached, _>(
            "/v1/detach",
            "Takes programs, maps and addresses off the host, and ends the agent.",
            detach::<C>,
        ),
        Route::get::<serde_json::Value, _>("/v1/openapi.json", "This document.", document::<C>),
    ]
}

async fn document<C: Control>(State(app): Shared<C>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], app.document.clone()).into_response()
}

async fn status<C: Control>(State(app): Shared<C>, Asked(query): Asked<ServiceQuery>) -> Reply<Status> {
    app.control.status(query).await.map(Json)
}

async fn services<C: Control>(State(app): Shared<C>, Asked(query): Asked<ServiceQuery>) -> Reply<Services> {
    app.control.services(query).await.map(Json)
}

async fn backends<C: Control>(State(app): Shared<C>, Asked(query): Asked<ServiceQuery>) -> Reply<Backends> {
    app.control.services(query).await.map(|page| Json(Backends::of(page)))
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

async fn faults<C: Control>(State(app): Shared<C>) -> Reply<Faults> {
    app.control.faults().await.map(Json)
}

async fn add_fault<C: Control>(
    State(app): Shared<C>,
    Extension(call): Extension<Call>,
    Path(service): Path<String>,
    Body(request): Body<AddFault>,
) -> Reply<Faults> {
    app.control.add_fault(call, service, request).await.map(Json)
}

async fn clear_faults<C: Control>(
    State(app): Shared<C>,
    Extension(call): Extension<Call>,
    Body(request): Body<ClearFaults>,
) -> Reply<Faults> {
    app.control.clear_faults(call, request).await.map(Json)
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
    let Loaded { config, warnings } = parse(request.text.clone(), request.name.clone())
        .await?
        .map_err(|found| ApiError::invalid(&request.name, &found))?;
    let applied = app.control.apply(call, config, request).await?;
    // They are many where services are, and need nothing of the agent.
    Ok(Json(Applied { diagnostics: warnings.reports(), ..applied }))
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
    let kind = [(header::CONTENT_TYPE, JSON_LINES)];
    let Some(place) = place else {
        return Ok((kind, past).into_response());
    };
    let follower = Follower { live, about, stopped: app.stopped.clone(), _place: place };
    let body = axum::body::Body::from_stream(follower.lines(past));
    Ok((kind, body).into_response())
}

async fn trace<C: Control>(
    State(app): Shared<C>,
    Extension(call): Extension<Call>,
    Body(request): Body<Trace>,
) -> Answer<Response> {
    let told = app.control.trace(call, request).await?;
    let lines = stream::unfold((told, app.stopped.clone()), async |(mut told, mut stopped)| {
        let traced = tokio::select! {
            _ = stopped.wait_for(|stopped| *stopped) => return None,
            traced = told.recv() => traced?,
        };
        let mut line = serde_json::to_vec(&traced).unwrap_or_default();
        line.push(b'\n');
        Some((Ok::<Bytes, Infallible>(line.into()), (told, stopped)))
    });
    Ok(([(header::CONTENT_TYPE, JSON_LINES)], axum::body::Body::from_stream(lines)).into_response())
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
    service.is_none() || event.service == *service || event.code == events::MISSED
}

fn line(event: &Event) -> Vec<u8> {
    let mut line = serde_json::to_vec(event).unwrap_or_default();
    line.push(b'\n');
    line
}
