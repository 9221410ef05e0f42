//! `/metrics`, `/healthz`, `/readyz` and the status page, over TCP and for everybody who can reach the address.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures_util::{StreamExt as _, stream};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tracing::warn;

use super::{page, text};
use crate::agent::{Agent, Handle};
use crate::api::server::serve_connection;

/// Connections at a time; more wait in the socket's queue.
const CONNECTIONS: usize = 64;
/// How long the agent may take to answer before it counts as not well.
const PATIENCE: Duration = Duration::from_secs(2);

/// Where metrics are served, if they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Where {
    /// Nowhere.
    Off,
    /// There.
    At(SocketAddr),
}

/// What is neither an address nor `off`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected an address and port such as 127.0.0.1:9650, or `off`")]
pub struct NotAPlace;

impl FromStr for Where {
    type Err = NotAPlace;

    fn from_str(text: &str) -> Result<Self, NotAPlace> {
        match text {
            "off" => Ok(Self::Off),
            _ => text.parse().map(Self::At).map_err(|_| NotAPlace),
        }
    }
}

impl fmt::Display for Where {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::At(address) => address.fmt(f),
        }
    }
}

/// The address cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot serve metrics on {address}; choose another address, or `off` (--metrics or LB_METRICS)")]
pub struct ListenError {
    address: SocketAddr,
    source: io::Error,
}

/// An address that is ours, and not served yet.
#[derive(Debug)]
pub struct Listener {
    listener: TcpListener,
    address: SocketAddr,
}

/// What every request needs.
#[derive(Clone)]
pub(super) struct App {
    agent: Handle,
    /// One scrape at a time: however many ask, the agent works for one of them.
    turn: Arc<Mutex<()>>,
}

impl Listener {
    /// Takes the address. Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// If it is taken, or not this host's.
    pub async fn bind(address: SocketAddr) -> Result<Self, ListenError> {
        let listener = TcpListener::bind(address).await.map_err(|source| ListenError { address, source })?;
        Ok(Self { listener, address })
    }

    /// Serves until `stopped` turns true.
    pub async fn serve(self, agent: Handle, mut stopped: watch::Receiver<bool>) {
        let app = App { agent, turn: Arc::default() };
        let routes = Router::new()
            .route("/metrics", get(metrics))
            .route("/healthz", get(healthz))
            .route("/readyz", get(readyz))
            .with_state(app.clone())
            .merge(page::routes(app, self.address, stopped.clone()));
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                _ = stopped.wait_for(|stopped| *stopped) => break,
                Some(_) = connections.join_next() => continue,
                accepted = accept(&self.listener, &places) => accepted,
            };
            match accepted {
                Ok((stream, place)) => {
                    let connection = serve_connection(stream, routes.clone(), |_| {}, stopped.clone());
                    connections.spawn(async move {
                        connection.await;
                        drop(place);
                    });
                }
                Err(error) => {
                    // Mostly no file descriptors left; they come back as others close.
                    warn!(%error, "cannot accept a connection for metrics");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> io::Result<(TcpStream, OwnedSemaphorePermit)> {
    let place = Arc::clone(places).acquire_owned().await;
    let place = place.map_err(|_| io::Error::other("the server has ended"))?;
    let (stream, _) = listener.accept().await?;
    Ok((stream, place))
}

impl App {
    /// Asks the agent, which may be busy or have ended.
    pub(super) async fn ask<R: Send + 'static>(
        &self,
        f: impl FnOnce(&mut Agent) -> R + Send + 'static,
    ) -> Result<R, Response> {
        let unwell = |why: String| (StatusCode::SERVICE_UNAVAILABLE, why + "\n").into_response();
        match tokio::time::timeout(PATIENCE, self.agent.call(f)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(unwell(error.to_string())),
            Err(_) => Err(unwell(format!("the agent has not answered for {PATIENCE:?}"))),
        }
    }
}

async fn metrics(State(app): State<App>) -> Result<Response, Response> {
    let _turn = app.turn.lock().await;
    let scrape = app.ask(|agent| agent.scrape()).await?;
    // Made while it is sent, and never there as a whole: that of ten thousand backends has 24 MB.
    let (sender, mut receiver) = mpsc::channel(4);
    tokio::task::spawn_blocking(move || {
        let (sent, empty) = std::sync::mpsc::channel();
        scrape.write(|text| {
            let piece = Bytes::from_owner(Piece { text, sent: sent.clone() });
            sender.blocking_send(piece).ok()?;
            Some(empty.try_recv().unwrap_or_else(|_| text::piece()))
        });
    });
    let first = receiver.recv().await.ok_or_else(|| StatusCode::INTERNAL_SERVER_ERROR.into_response())?;
    let head = [(header::CONTENT_TYPE, text::MEDIA_TYPE)];
    let Some(second) = receiver.recv().await else {
        return Ok((head, first).into_response());
    };
    let begun = stream::iter([first, second]);
    let rest = stream::unfold(receiver, |mut receiver| async { Some((receiver.recv().await?, receiver)) });
    Ok((head, Body::from_stream(begun.chain(rest).map(Ok::<_, Infallible>))).into_response())
}

/// A piece of the text on its way. Once it is sent, its memory is written into again: new memory for each would cost more than to
/// write it.
struct Piece {
    text: String,
    sent: std::sync::mpsc::Sender<String>,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        self.text.as_bytes()
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        let mut text = std::mem::take(&mut self.text);
        text.clear();
        // Nobody writes any more if that fails.
        let _ = self.sent.send(text);
    }
}

/// Whether the agent answers.
async fn healthz(State(app): State<App>) -> Result<&'static str, Response> {
    app.ask(|_| "ok\n").await
}

/// Whether clients' packets meet the program.
async fn readyz(State(app): State<App>) -> Result<&'static str, Response> {
    let missing = app.ask(|agent| agent.missing_interfaces()).await?;
    if missing.is_empty() {
        return Ok("ready\n");
    }
    let why = format!("not ready: the program is not on {}\n", missing.join(", "));
    Err((StatusCode::SERVICE_UNAVAILABLE, why).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_at_an_address_or_nowhere() {
        assert_eq!("off".parse(), Ok(Where::Off));
        assert_eq!("[::1]:9650".parse(), Ok(Where::At("[::1]:9650".parse().unwrap())));
        for wrong in ["", "9650", "localhost:9650", "Off", "127.0.0.1"] {
            assert_eq!(wrong.parse::<Where>(), Err(NotAPlace), "{wrong}");
        }
        assert_eq!(Where::At("127.0.0.1:1".parse().unwrap()).to_string(), "127.0.0.1:1");
    }

    #[tokio::test]
    async fn an_address_that_is_taken_is_named_with_the_way_out() {
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = taken.local_addr().unwrap();
        let error = Listener::bind(address).await.unwrap_err().to_string();
        assert!(error.contains(&address.to_string()) && error.contains("LB_METRICS"), "{error}");
    }
}
