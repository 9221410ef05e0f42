//! Checks, and servers to be checked.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use lb_userspace::health::{Check, CheckKind, HealthEvent, HttpCheck, Target, TargetId, Timing};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::mpsc,
    time::{sleep, timeout},
};

const LOOPBACK: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 0);

pub fn timing(interval_ms: u64, timeout_ms: u64, healthy: u32, unhealthy: u32) -> Timing {
    let ms = Duration::from_millis;
    Timing::new(ms(interval_ms), ms(timeout_ms), healthy, unhealthy)
        .expect("the timings of the tests can be kept")
}

pub fn tcp(timing: Timing) -> Check {
    Check { kind: CheckKind::Tcp, timing }
}

pub fn http(path: &str, host: Option<&str>, expect: &str, timing: Timing) -> Check {
    let expect = expect.parse().expect("status ranges");
    let check = HttpCheck::new(path, host, expect).expect("a path and a host");
    Check { kind: CheckKind::Http(Arc::new(check)), timing }
}

pub fn target(id: u64, address: SocketAddr, check: Check) -> Target {
    Target { id: TargetId(id), address, check, mark: None, via: None }
}

pub async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind(LOOPBACK).await.expect("loopback is there");
    let address = listener.local_addr().expect("it is bound");
    (listener, address)
}

/// What a server does with a connection whose request it has read.
#[derive(Clone, Copy)]
pub enum Reply {
    /// Sends that, closes.
    Text(&'static str),
    /// Sends that, then says nothing more and keeps the connection.
    ThenSilence(&'static str),
    /// Sends the head, then a body until nobody listens.
    EndlessBody,
    /// Sends header lines until nobody listens.
    EndlessHead,
    /// One byte every 50 ms.
    Drip,
    Reset,
}

/// Serves every connection that way; the requests that it got.
pub fn serve(listener: TcpListener, reply: Reply) -> Arc<Mutex<Vec<String>>> {
    let requests = Arc::new(Mutex::new(vec![]));
    let seen = Arc::clone(&requests);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer(stream, reply, Arc::clone(&seen)));
        }
    });
    requests
}

async fn answer(
    mut stream: TcpStream,
    reply: Reply,
    requests: Arc<Mutex<Vec<String>>>,
) -> std::io::Result<()> {
    let mut request = vec![];
    while !request.ends_with(b"\r\n\r\n") {
        if stream.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
    }
    let request = String::from_utf8_lossy(&request).into_owned();
    requests.lock().expect("no test thread panicked").push(request);
    match reply {
        Reply::Text(text) => stream.write_all(text.as_bytes()).await,
        Reply::ThenSilence(text) => {
            stream.write_all(text.as_bytes()).await?;
            sleep(Duration::from_secs(3600)).await;
            Ok(())
        }
        Reply::EndlessBody => {
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
            loop {
                stream.write_all(&[b'x'; 4096]).await?;
            }
        }
        Reply::EndlessHead => {
            stream.write_all(b"HTTP/1.1 200 OK\r\n").await?;
            for n in 0.. {
                stream.write_all(format!("X-{n}: {n}\r\n").as_bytes()).await?;
            }
            Ok(())
        }
        Reply::Drip => {
            for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n" {
                stream.write_all(&[*byte]).await?;
                sleep(Duration::from_millis(50)).await;
            }
            Ok(())
        }
        Reply::Reset => stream.set_zero_linger(),
    }
}

/// An address that answers no handshake: its queue of connections is full.
pub async fn deaf() -> (TcpListener, Vec<TcpStream>, SocketAddr) {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind(LOOPBACK.into()).expect("loopback is there");
    let listener = socket.listen(1).expect("it is bound");
    let address = listener.local_addr().expect("it is bound");
    let mut waiting = vec![];
    while let Ok(Ok(stream)) = timeout(Duration::from_millis(100), TcpStream::connect(address)).await {
        waiting.push(stream);
    }
    (listener, waiting, address)
}

/// A server that can stop answering, and says how many connections it has and had.
#[derive(Clone, Default)]
pub struct Switch {
    pub silent: Arc<AtomicBool>,
    pub connections: Arc<AtomicUsize>,
    open: Arc<AtomicUsize>,
    pub most_open: Arc<AtomicUsize>,
}

impl Switch {
    pub async fn start() -> (Self, SocketAddr) {
        let (listener, address) = listen().await;
        let switch = Self::default();
        let server = switch.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(server.clone().serve(stream));
            }
        });
        (switch, address)
    }

    async fn serve(self, mut stream: TcpStream) {
        self.connections.fetch_add(1, Ordering::Relaxed);
        let open = self.open.fetch_add(1, Ordering::Relaxed) + 1;
        self.most_open.fetch_max(open, Ordering::Relaxed);
        let mut request = [0; 1024];
        let read = stream.read(&mut request).await;
        if read.is_ok() && !self.silent.load(Ordering::Relaxed) {
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
            // The end of a connection is the prober's business.
            drop(stream.write_all(answer).await);
        }
        while matches!(stream.read(&mut request).await, Ok(1..)) {}
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}

pub async fn next(events: &mut mpsc::Receiver<HealthEvent>) -> HealthEvent {
    timeout(Duration::from_secs(10), events.recv())
        .await
        .expect("an event comes")
        .expect("the scheduler lives")
}
