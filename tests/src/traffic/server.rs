//! Servers that say who they are.

mod http;
mod lines;
mod udp;

use std::{
    collections::HashSet,
    future::pending,
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU16, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use socket2::{Domain, SockFilter, SockRef, Socket, Type};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
};

use super::{
    Outcome,
    worker::{Control, Role, Worker},
};
use crate::Namespace;

/// A server process in a host. Dropping it kills it: its kernel then resets what comes.
///
/// It listens on every address of the host, of both families, those on the loopback included.
#[derive(Debug)]
pub struct Server {
    worker: Worker,
    name: String,
}

impl Server {
    /// Starts a server and waits until it listens.
    ///
    /// # Errors
    /// If the port is taken.
    pub fn start(host: &Namespace, spec: ServerSpec) -> Result<Self> {
        let name = spec.name.clone();
        let worker = Worker::start(host, &Role::Server(spec))
            .with_context(|| format!("cannot start the server {name} in {}", host.name()))?;
        Ok(Self { worker, name })
    }

    /// Who it says it is.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Changes what it does with new connections. It does so when this returns.
    ///
    /// # Errors
    /// If the server has died.
    pub fn behave(&self, behaviour: Behaviour) -> Result<()> {
        self.worker.ask(&Request::Behave(behaviour))
    }

    /// Changes the status that `/healthz` answers with.
    ///
    /// # Errors
    /// If the server has died.
    pub fn set_health(&self, status: u16) -> Result<()> {
        self.worker.ask(&Request::Health(status))
    }

    /// What it has counted since it started.
    ///
    /// # Errors
    /// If the server has died.
    pub fn counts(&self) -> Result<Counts> {
        self.worker.ask(&Request::Counts)
    }

    /// Kills it, as a crash would.
    pub fn kill9(&self) {
        self.worker.kill9();
    }
}

/// What a server is to be.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ServerSpec {
    name: String,
    port: u16,
    protocol: Protocol,
    behaviour: Behaviour,
}

impl ServerSpec {
    /// TCP: each line is answered by the name, a space and the line.
    #[must_use]
    pub fn lines(name: &str, port: u16) -> Self {
        Self::new(name, port, Protocol::Lines)
    }

    /// HTTP/1.1 with keep-alive: every path is answered by the name, `/healthz` by a status.
    #[must_use]
    pub fn http(name: &str, port: u16) -> Self {
        Self::new(name, port, Protocol::Http)
    }

    /// UDP: each datagram is answered by the name, a space and the datagram, from the address that
    /// it was sent to.
    #[must_use]
    pub fn udp(name: &str, port: u16) -> Self {
        Self::new(name, port, Protocol::Udp)
    }

    /// With this behaviour from the start.
    #[must_use]
    pub fn behaving(self, behaviour: Behaviour) -> Self {
        Self { behaviour, ..self }
    }

    fn new(name: &str, port: u16, protocol: Protocol) -> Self {
        Self { name: name.to_owned(), port, protocol, behaviour: Behaviour::Serve }
    }
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum Protocol {
    Lines,
    Http,
    Udp,
}

/// What a server does with connections that are new, and answers that are due.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Behaviour {
    /// Answers.
    Serve,
    /// Does not listen: the kernel answers a SYN by RST, and a datagram by ICMP. Established
    /// connections are served, and those whose handshake was under way.
    Refuse,
    /// Takes the connection and says nothing, on established ones neither.
    Hang,
    /// Takes the connection and closes it.
    Close,
    /// Takes the connection and resets it.
    Reset,
    /// Answers late, by this much.
    Delay(Duration),
}

/// What a server has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Connections taken.
    pub accepted: u64,
    /// Connections that are open now.
    pub open: u64,
    /// Lines, requests (without health checks) or datagrams answered.
    pub answers: u64,
    /// Requests for `/healthz` answered.
    pub health_checks: u64,
    /// Bytes of payload received.
    pub bytes_in: u64,
    /// Bytes of payload sent.
    pub bytes_out: u64,
    /// Distinct client addresses.
    pub clients: u64,
}

#[derive(Debug, Serialize, Deserialize)]
enum Request {
    Behave(Behaviour),
    Health(u16),
    Counts,
}

/// The worker's side.
pub(super) async fn work(spec: ServerSpec, mut control: Control) -> Outcome {
    let state = Arc::new(State::new(&spec));
    let mut applied = match spec.protocol {
        Protocol::Udp => udp::start(spec.port, Arc::clone(&state)),
        Protocol::Lines | Protocol::Http => listen(spec.port, spec.protocol, Arc::clone(&state)),
    };
    // The first time it is applied, the port is open, or known to be taken.
    applied.mark_changed();
    let opened = settled(&mut applied, spec.behaviour).await;
    control.answer(opened).await?;
    while let Some(request) = control.next().await? {
        match request {
            Request::Behave(behaviour) => {
                state.behaviour.send_replace(behaviour);
                let done = settled(&mut applied, behaviour).await;
                control.answer(done).await?;
            }
            Request::Health(status) => {
                state.health.store(status, Ordering::Relaxed);
                control.answer(Ok(())).await?;
            }
            Request::Counts => control.answer(Ok(state.counts())).await?,
        }
    }
    Ok(())
}

/// What the accepting task has last done.
type Applied = Result<Behaviour, String>;

async fn settled(applied: &mut watch::Receiver<Option<Applied>>, wanted: Behaviour) -> Result<()> {
    let state = applied.wait_for(|state| matches!(state, Some(Err(_))) || *state == Some(Ok(wanted))).await?;
    match &*state {
        Some(Err(why)) => Err(anyhow::anyhow!(why.clone())),
        _ => Ok(()),
    }
}

/// What all tasks of a server share.
struct State {
    name: String,
    behaviour: watch::Sender<Behaviour>,
    health: AtomicU16,
    accepted: AtomicU64,
    open: AtomicU64,
    answers: AtomicU64,
    health_checks: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    clients: Mutex<HashSet<IpAddr>>,
}

impl State {
    fn new(spec: &ServerSpec) -> Self {
        Self {
            name: spec.name.clone(),
            behaviour: watch::Sender::new(spec.behaviour),
            health: AtomicU16::new(200),
            accepted: AtomicU64::default(),
            open: AtomicU64::default(),
            answers: AtomicU64::default(),
            health_checks: AtomicU64::default(),
            bytes_in: AtomicU64::default(),
            bytes_out: AtomicU64::default(),
            clients: Mutex::default(),
        }
    }

    fn counts(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            accepted: read(&self.accepted),
            open: read(&self.open),
            answers: read(&self.answers),
            health_checks: read(&self.health_checks),
            bytes_in: read(&self.bytes_in),
            bytes_out: read(&self.bytes_out),
            clients: self.clients.lock().map_or(0, |clients| clients.len() as u64),
        }
    }

    fn behaviour(&self) -> Behaviour {
        *self.behaviour.borrow()
    }

    /// Holds an answer back for as long as the behaviour says.
    async fn before_answer(&self) {
        match self.behaviour() {
            Behaviour::Hang => pending().await,
            Behaviour::Delay(by) => tokio::time::sleep(by).await,
            _ => {}
        }
    }

    fn met(&self, client: SocketAddr) {
        if let Ok(mut clients) = self.clients.lock() {
            clients.insert(client.ip().to_canonical());
        }
    }
}

fn add(counter: &AtomicU64, amount: usize) {
    counter.fetch_add(amount as u64, Ordering::Relaxed);
}

/// Starts accepting; the receiver tells which behaviour is in force.
fn listen(port: u16, protocol: Protocol, state: Arc<State>) -> watch::Receiver<Option<Applied>> {
    let (sender, receiver) = watch::channel(None);
    tokio::spawn(async move {
        let mut behaviour = state.behaviour.subscribe();
        loop {
            let mut now = *behaviour.borrow_and_update();
            if now == Behaviour::Refuse {
                sender.send_replace(Some(Ok(now)));
                let _ = behaviour.changed().await;
                continue;
            }
            let listener = match open_listener(port) {
                Ok(listener) => listener,
                Err(error) => {
                    sender.send_replace(Some(Err(format!("cannot listen on {port}: {error}"))));
                    return;
                }
            };
            while now != Behaviour::Refuse {
                sender.send_replace(Some(Ok(now)));
                tokio::select! {
                    _ = behaviour.changed() => now = *behaviour.borrow_and_update(),
                    accepted = listener.accept() => match accepted {
                        Ok((stream, client)) => {
                            state.met(client);
                            tokio::spawn(serve(stream, protocol, Arc::clone(&state)));
                        }
                        Err(error) => eprintln!("accept: {error}"),
                    }
                }
            }
            last_calls(&listener, protocol, &state).await;
        }
    });
    receiver
}

/// Takes whoever has begun already: the kernel resets those whom a listener leaves behind when it closes.
async fn last_calls(listener: &TcpListener, protocol: Protocol, state: &Arc<State>) {
    /// No handshake in the lab takes that long.
    const HANDSHAKE: Duration = Duration::from_millis(100);
    if let Err(error) = SockRef::from(listener).attach_filter(&NO_SYN) {
        eprintln!("a filter of SYNs: {error}");
    }
    let over = tokio::time::sleep(HANDSHAKE);
    tokio::pin!(over);
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                if let Ok((stream, client)) = accepted {
                    state.met(client);
                    tokio::spawn(serve(stream, protocol, Arc::clone(state)));
                }
            }
            () = &mut over => return,
        }
    }
}

/// A filter of a TCP socket (classic BPF, which sees the TCP header first): no SYNs.
const NO_SYN: [SockFilter; 5] = [
    // The flags,
    SockFilter::new((libc::BPF_LD | libc::BPF_B | libc::BPF_ABS) as u16, 0, 0, 13),
    // SYN and ACK of them:
    SockFilter::new((libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u16, 0, 0, 0x12),
    SockFilter::new((libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16, 0, 1, 0x02),
    SockFilter::new((libc::BPF_RET | libc::BPF_K) as u16, 0, 0, 0),
    SockFilter::new((libc::BPF_RET | libc::BPF_K) as u16, 0, 0, u32::MAX),
];

fn open_listener(port: u16) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::IPV6, Type::STREAM.nonblocking(), None)?;
    socket.set_only_v6(false)?;
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into())?;
    socket.listen(4096)?;
    TcpListener::from_std(socket.into())
}

async fn serve(mut stream: TcpStream, protocol: Protocol, state: Arc<State>) {
    add(&state.accepted, 1);
    match state.behaviour() {
        Behaviour::Close => return,
        Behaviour::Reset => {
            let _ = stream.set_zero_linger();
            return;
        }
        _ => {}
    }
    add(&state.open, 1);
    let _ = stream.set_nodelay(true);
    // How a conversation ends is the client's business, and counted there.
    let _ = match protocol {
        Protocol::Http => http::converse(&mut stream, &state).await,
        Protocol::Lines | Protocol::Udp => lines::converse(&mut stream, &state).await,
    };
    state.open.fetch_sub(1, Ordering::Relaxed);
}
