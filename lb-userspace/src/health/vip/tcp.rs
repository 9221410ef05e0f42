//! A TCP connection along the data path, by a stack of this process (smoltcp): one interface and one socket for each.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium};
use smoltcp::socket::tcp::{RecvError, Socket, SocketBuffer, State};
use smoltcp::time::Instant as Time;
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until, timeout_at};

use super::Road;
use crate::health::probe::{Failure, Miss};

/// Long enough for IPv6, and short enough for any tunnel: the backend hears of it as the MSS.
const MTU: usize = 1280;
/// In bytes. What a probe reads at once, and what it sends.
const RECEIVE_BUFFER: usize = 32 * 1024;
const SEND_BUFFER: usize = 8 * 1024;

/// A connection. It ends with a RST when it is dropped, as those of all probes.
pub(in crate::health) struct Stream {
    road: Road,
    queue: Queue,
    interface: Interface,
    sockets: SocketSet<'static>,
    socket: SocketHandle,
    /// What the stack's time is counted from.
    epoch: Instant,
    timer: Pin<Box<Sleep>>,
}

impl Stream {
    /// Connects.
    pub(in crate::health) async fn connect(road: Road, deadline: Instant) -> Result<Self, Miss> {
        let mut stream = Self::new(road);
        let connected = poll_fn(|cx| {
            stream.work(cx);
            match stream.socket().state() {
                // Nothing of it was open: only a RST ends it.
                State::Closed => Poll::Ready(Err(Failure::ConnectRefused)),
                State::SynSent | State::SynReceived | State::Listen => Poll::Pending,
                _ => Poll::Ready(Ok(())),
            }
        });
        timeout_at(deadline, connected).await.map_err(|_| Failure::ConnectTimeout)??;
        Ok(stream)
    }

    fn new(road: Road) -> Self {
        let (from, vip) = road.ends();
        let epoch = Instant::now();
        let mut queue = Queue::default();
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = RandomState::new().hash_one(from);
        let mut interface = Interface::new(config, &mut queue, Time::ZERO);
        let whole = if from.is_ipv4() { 32 } else { 128 };
        interface.update_ip_addrs(|addresses| {
            // There is room for one at least.
            _ = addresses.push(IpCidr::new(from.ip().into(), whole));
        });
        // Everything is one hop away: the data path knows which.
        match IpAddress::from(vip.ip()) {
            IpAddress::Ipv4(vip) => _ = interface.routes_mut().add_default_ipv4_route(vip),
            IpAddress::Ipv6(vip) => _ = interface.routes_mut().add_default_ipv6_route(vip),
        }
        let buffer = |size| SocketBuffer::new(vec![0; size]);
        let mut socket = Socket::new(buffer(RECEIVE_BUFFER), buffer(SEND_BUFFER));
        socket.set_ack_delay(None);
        socket.set_nagle_enabled(false);
        socket.connect(interface.context(), vip, from).expect("a new socket, with both addresses and ports");
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let socket = sockets.add(socket);
        Self { road, queue, interface, sockets, socket, epoch, timer: Box::pin(sleep_until(epoch)) }
    }

    fn socket(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.socket)
    }

    fn time(&self) -> Time {
        Time::from_micros(i64::try_from(self.epoch.elapsed().as_micros()).unwrap_or(i64::MAX))
    }

    /// Takes in what has come, and sends what is due; the task is woken when there is more of either.
    fn work(&mut self, cx: &mut Context<'_>) {
        loop {
            while let Poll::Ready(packet) = self.road.seat.poll_answer(cx) {
                self.queue.received.push_back(packet);
            }
            self.turn();
            let Some(delay) = self.interface.poll_delay(self.time(), &self.sockets) else { return };
            self.timer.as_mut().reset(Instant::now() + delay.into());
            if self.timer.as_mut().poll(cx).is_pending() {
                return;
            }
        }
    }

    /// One turn of the stack.
    fn turn(&mut self) {
        let now = self.time();
        self.interface.poll(now, &mut self.queue, &mut self.sockets);
        for packet in self.queue.to_send.drain(..) {
            self.road.send(&packet);
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.socket().abort();
        self.turn();
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.work(cx);
        let read = self.socket().recv_slice(buffer.initialize_unfilled());
        match read {
            Ok(0) if buffer.remaining() > 0 => Poll::Pending,
            Ok(length) => {
                buffer.advance(length);
                // There is room again, which the other side may be waiting to hear.
                self.work(cx);
                Poll::Ready(Ok(()))
            }
            Err(RecvError::Finished) => Poll::Ready(Ok(())),
            Err(RecvError::InvalidState) => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.work(cx);
        match self.socket().send_slice(data) {
            Ok(0) if !data.is_empty() => Poll::Pending,
            Ok(length) => {
                self.work(cx);
                Poll::Ready(Ok(length))
            }
            Err(_closed) => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.work(cx);
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket().close();
        self.work(cx);
        Poll::Ready(Ok(()))
    }
}

/// What the stack takes for its device: packets that have come, and packets to be sent.
#[derive(Debug, Default)]
struct Queue {
    received: VecDeque<Vec<u8>>,
    to_send: Vec<Vec<u8>>,
}

impl Device for Queue {
    type RxToken<'a> = Received;
    type TxToken<'a> = ToSend<'a>;

    fn receive(&mut self, _: Time) -> Option<(Received, ToSend<'_>)> {
        let packet = self.received.pop_front()?;
        Some((Received(packet), ToSend(&mut self.to_send)))
    }

    fn transmit(&mut self, _: Time) -> Option<ToSend<'_>> {
        Some(ToSend(&mut self.to_send))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = MTU;
        // The card may have checked it, and a sender on this host may have left it to the card.
        capabilities.checksum.tcp = Checksum::Tx;
        capabilities
    }
}

struct Received(Vec<u8>);

impl smoltcp::phy::RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

struct ToSend<'a>(&'a mut Vec<Vec<u8>>);

impl smoltcp::phy::TxToken for ToSend<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, write: F) -> R {
        let mut packet = vec![0; length];
        let result = write(&mut packet);
        self.0.push(packet);
        result
    }
}
