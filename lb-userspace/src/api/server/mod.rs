//! The agent's side of the socket.

mod body;
mod routes;
mod socket;
mod stall;

use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tracing::{debug, warn};

use super::{Actor, Call, Control};
pub use socket::BindError;
use socket::Held;
use stall::Impatient;

/// Connections at a time; more wait in the socket's queue.
const CONNECTIONS: usize = 512;
/// Clients that may follow events at a time, so that others still get through.
const FOLLOWERS: usize = 128;
/// How long a client may take to send the head of a request.
const HEAD: Duration = Duration::from_secs(10);
/// How long a client may leave an answer unread.
const STALL: Duration = Duration::from_secs(10);
/// How long requests that are under way may go on after the server was told to stop.
const GRACE: Duration = Duration::from_secs(5);

/// Serves an agent on a socket for as long as it is polled; see [`Server`].
///
/// # Errors
/// If the socket cannot be had.
pub async fn serve<C: Control>(socket: impl AsRef<Path>, control: C) -> Result<(), BindError> {
    Server::bind(socket)?.serve(Arc::new(control), std::future::pending()).await;
    Ok(())
}

/// A socket that is ours, and not served yet.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
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
        let (listener, held) = socket::bind(path.as_ref())?;
        Ok(Self { listener, held })
    }

    /// Serves until `stop` is ready, then lets requests that are under way finish for a few seconds. The socket is gone
    /// afterwards.
    pub async fn serve<C: Control>(self, control: Arc<C>, stop: impl Future<Output = ()>) {
        let (stopping, stopped) = watch::channel(false);
        let routes = routes::all(routes::App {
            control,
            stopped: stopped.clone(),
            followers: Arc::new(Semaphore::new(FOLLOWERS)),
        });
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
                    warn!(%error, "cannot accept a connection on the admin socket");
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

/// One client, from its first request to its last.
async fn connection(stream: UnixStream, routes: Router, mut stopped: watch::Receiver<bool>) {
    let actor = match stream.peer_cred() {
        Ok(peer) => Actor { uid: peer.uid(), gid: peer.gid(), pid: peer.pid() },
        Err(error) => {
            warn!(%error, "a client of the admin socket has no credentials and is not served");
            return;
        }
    };
    let routes = TowerToHyperService::new(routes);
    let service = service_fn(move |mut request: Request<Incoming>| {
        let call = Call { actor, arrived: Instant::now() };
        request.extensions_mut().insert(call);
        routes.call(request)
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD)
            .serve_connection(TokioIo::new(Impatient::new(stream, STALL)), service)
    );
    let told = async { stopped.wait_for(|stopped| *stopped).await.is_ok() };
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        _ = told => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!(%error, "a client of the admin socket was cut off");
    }
}
