//! The agent's side of the socket.

mod body;
mod http;
mod openapi;
mod routes;
mod socket;
mod stall;

use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::Request;
use axum::http::Method;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use hyper::body::Incoming;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tracing::warn;

use super::{Actor, ApiError, Call, Control, ErrorCode};
pub(crate) use http::serve_connection;
pub use socket::BindError;
use socket::{Access, Held};

/// Connections at a time; more wait in the socket's queue.
const CONNECTIONS: usize = 512;
/// Clients that may follow events at a time, so that others still get through.
const FOLLOWERS: usize = 128;
/// Requests that readers of the second socket may have under way at a time: however many they are, and however fast they
/// ask, an operator's request waits for these at most.
const READERS: usize = 4;
/// How long requests that are under way may go on after the server was told to stop.
const GRACE: Duration = Duration::from_secs(5);

/// A socket that is ours, and not served yet.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    read_only: bool,
    /// Takes the socket away when it goes.
    held: Held,
}

impl Server {
    /// Takes the socket, with mode 0660 and the group `lb` if the host has one. A socket that a dead agent left behind is
    /// replaced. Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// If another agent lives there, or the place cannot be used.
    pub fn bind(path: impl AsRef<Path>) -> Result<Self, BindError> {
        let (listener, held) = socket::bind(path.as_ref(), Access::Admin)?;
        Ok(Self { listener, read_only: false, held })
    }

    /// Takes a socket that answers GET only, with this mode. A socket that a dead agent left behind is replaced. Must be
    /// called within a Tokio runtime.
    ///
    /// # Errors
    /// As [`Server::bind`].
    pub fn bind_read_only(path: impl AsRef<Path>, mode: u32) -> Result<Self, BindError> {
        let (listener, held) = socket::bind(path.as_ref(), Access::Mode(mode))?;
        Ok(Self { listener, read_only: true, held })
    }

    /// Serves until `stop` is ready, then lets requests that are under way finish for a few seconds. The socket is gone
    /// afterwards.
    pub async fn serve<C: Control>(self, control: Arc<C>, stop: impl Future<Output = ()>) {
        let (stopping, stopped) = watch::channel(false);
        let mut routes = routes::all(control, stopped.clone(), FOLLOWERS);
        if self.read_only {
            let readers = Arc::new(Semaphore::new(READERS));
            routes = routes.layer(middleware::from_fn(move |request, next| {
                read_only(Arc::clone(&readers), request, next)
            }));
        }
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        let mut connections = JoinSet::new();
        let mut stop = pin!(stop);
        loop {
            let accepted = tokio::select! {
                () = &mut stop => break,
                Some(_) = connections.join_next() => continue,
                accepted = accept(&self.listener, &places) => accepted,
            };
            let (stream, place) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Mostly no file descriptors left; they come back as others close.
                    warn!(%error, "cannot accept a connection on the socket");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let connection = connection(stream, routes.clone(), stopped.clone());
            connections.spawn(async move {
                connection.await;
                drop(place);
            });
        }
        drop(self.listener);
        drop(self.held);
        // Fails only if no connection is left.
        _ = stopping.send(true);
        let finish = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout(GRACE, finish).await.is_err() {
            warn!("some requests did not end in time and were cut off");
        }
    }
}

async fn accept(
    listener: &UnixListener,
    places: &Arc<Semaphore>,
) -> std::io::Result<(UnixStream, tokio::sync::OwnedSemaphorePermit)> {
    let place = Arc::clone(places).acquire_owned().await;
    let place = place.map_err(|_| std::io::Error::other("the server has ended"))?;
    let (stream, _) = listener.accept().await?;
    Ok((stream, place))
}

/// Lets reading pass, and little of it at a time.
async fn read_only(readers: Arc<Semaphore>, request: Request, next: Next) -> Response {
    if request.method() != Method::GET {
        let refused = format!("this socket is for reading: it does not take {}", request.method());
        return ApiError::new(ErrorCode::ReadOnly, refused)
            .about(format!("{} {}", request.method(), request.uri().path()))
            .remedy("use the admin socket (--socket or LB_SOCKET)")
            .into_response();
    }
    // Never closed. What is followed goes on after its place is free.
    let _place = readers.acquire().await;
    next.run(request).await
}

/// One client, from its first request to its last.
async fn connection(stream: UnixStream, routes: axum::Router, stopped: watch::Receiver<bool>) {
    let actor = match stream.peer_cred() {
        Ok(peer) => Actor { uid: peer.uid(), gid: peer.gid(), pid: peer.pid() },
        Err(error) => {
            warn!(%error, "a client of the socket has no credentials and is not served");
            return;
        }
    };
    let called = move |request: &mut Request<Incoming>| {
        request.extensions_mut().insert(Call { actor, arrived: Instant::now() });
    };
    serve_connection(stream, routes, called, stopped).await;
}
