//! Tracing: the program that tells, and a task that puts what it tells into words.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use aya::maps::{MapData, RingBuf};
use jiff::Timestamp;
use lb_common::abi::{Address, Port};
use lb_common::parse::{self, Kind};
use lb_common::pipeline::Packet;
use lb_common::stage::Stage;
use lb_common::trace::{Filter, Head};
use lb_common::verdict::Reason;
use lb_common::wire::{IPPROTO_TCP, IPPROTO_UDP, Wire};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::control::aside;
use super::{Agent, Handle, Request};
use crate::api::{Answer, Api, ApiError, ErrorCode, Trace, TracePoint, Traced};
use crate::config::Protocol;
use crate::{clock, dataplane};

/// The longest time that somebody may ask for.
const LONGEST: u64 = 600;
/// Points that wait for a reader; what comes beyond is lost, and counted.
const BACKLOG: usize = 4_096;

/// What a tracer needs to know of the agent's names, as they were when it began.
struct Names {
    backends: HashMap<u16, String>,
    interfaces: HashMap<u32, String>,
}

/// A trace under way.
pub(super) struct Tracing {
    /// Which one: of two, the one that ends must not take the other along.
    number: u64,
    /// `None` while it is being loaded.
    _program: Option<dataplane::Traced>,
}

impl Handle {
    /// Begins to trace. Ends when the time is over or nobody listens any more.
    pub(super) async fn begin_trace(&self, body: Trace, request: Request) -> Answer<mpsc::Receiver<Traced>> {
        let wanted = filter(&body)?;
        let (number, options) = self.ask(Agent::reserve_trace).await?;
        let (handle, lasts) = (self.clone(), Duration::from_secs(body.seconds));
        let (sender, receiver) = mpsc::channel(BACKLOG);
        // A task of its own: what is begun is ended also if nobody waits for the answer any more.
        let begun = tokio::spawn(async move {
            // The verifier takes seconds, in which the agent does its work.
            let tracer = aside(move || dataplane::tracer(&options)).await.and_then(|it| it.map_err(refused));
            let what = format!("tracing for {} s: {}", body.seconds, in_words(&body));
            let begin = move |agent: &mut Agent| {
                let ring = agent.begin_trace(number, tracer?, wanted, lasts)?;
                agent.note("trace_started", None, &request, what);
                Ok((ring, agent.names_for_traces()))
            };
            let begun = handle.ask(begin).await;
            let (ring, names) = match begun {
                Ok(begun) => begun,
                Err(error) => {
                    let _ = handle.call(move |agent| agent.forget_trace(number)).await;
                    return Err(error);
                }
            };
            tokio::spawn(async move {
                let told = tell(ring, names, &body, &sender);
                tokio::select! {
                    () = tokio::time::sleep(lasts) => {}
                    () = sender.closed() => {}
                    () = told => {}
                }
                // An agent that has ended has put the other program back.
                let _ = handle.call(move |agent| agent.end_trace(number)).await;
            });
            Ok(())
        });
        begun.await.map_err(|error| ApiError::new(ErrorCode::Internal, error.to_string()))??;
        Ok(receiver)
    }
}

fn refused(error: dataplane::LoadError) -> ApiError {
    ApiError::new(ErrorCode::Dataplane, format!("the program that traces cannot be loaded: {error}"))
        .remedy("packets are forwarded as before; the log has the verifier's words")
}

impl Agent {
    /// Takes the place of the one that traces.
    fn reserve_trace(&mut self) -> Answer<(u64, dataplane::Options)> {
        if self.tracing.is_some() {
            return Err(ApiError::new(ErrorCode::TraceUnderWay, "somebody traces already")
                .remedy("one at a time: wait until it has ended (600 s at most), or end it"));
        }
        self.traces += 1;
        self.tracing = Some(Tracing { number: self.traces, _program: None });
        Ok((self.traces, self.options()))
    }

    fn begin_trace(
        &mut self,
        number: u64,
        tracer: dataplane::Tracer,
        filter: Filter,
        lasts: Duration,
    ) -> Answer<RingBuf<MapData>> {
        let (program, ring) = tracer.begin(&self.kernel.attached, filter, lasts).map_err(refused)?;
        self.tracing = Some(Tracing { number, _program: Some(program) });
        Ok(ring)
    }

    /// Of one that did not begin.
    fn forget_trace(&mut self, number: u64) {
        self.tracing.take_if(|tracing| tracing.number == number);
    }

    fn end_trace(&mut self, number: u64) {
        if self.tracing.take_if(|tracing| tracing.number == number).is_some() {
            let author = crate::state::Author::agent("trace");
            self.note("trace_ended", None, &Request { author, reason: None }, "tracing has ended".to_owned());
        }
    }

    fn names_for_traces(&self) -> Names {
        let mut backends = HashMap::new();
        for service in self.all_services() {
            for pool in service.pools {
                for backend in pool.backends {
                    backends.insert(backend.id, format!("{}/{}/{}", service.name, pool.name, backend.name));
                }
            }
        }
        let links = self.links.snapshot();
        let interfaces = links.iter().map(|(index, link)| (*index, link.name.clone())).collect();
        Names { backends, interfaces }
    }
}

fn filter(body: &Trace) -> Answer<Filter> {
    let wrong = |what: &str| ApiError::new(ErrorCode::InvalidValue, what.to_owned());
    if body.seconds == 0 || body.seconds > LONGEST {
        return Err(wrong("a trace lasts between 1 and 600 seconds").remedy("say so with --for"));
    }
    let (address, bits) = match body.address {
        Some(address) => {
            let all = if address.is_ipv4() { 32 } else { 128 };
            let prefix = body.prefix.map_or(all, u32::from);
            if prefix > all {
                return Err(wrong("a prefix is no longer than its address"));
            }
            // An IPv4 address is the end of 16 bytes.
            (Address::from(address), 128 - all + prefix)
        }
        None if body.prefix.is_some() => return Err(wrong("a prefix needs an address")),
        None => (Address::default(), 0),
    };
    let mask = if bits == 0 { 0 } else { u128::MAX << (128 - bits) };
    let mask = Address::v6(&mask.to_be_bytes());
    let [words, bits] = [address.wire_words(), mask.wire_words()];
    Ok(Filter {
        // Set once the program is in its place.
        until: 0,
        address: Address::of_wire_words(std::array::from_fn(|i| words[i] & bits[i])),
        mask,
        port: body.port.map_or(Port::ANY, Port::new),
        protocol: match body.protocol {
            Some(Protocol::Tcp) => IPPROTO_TCP,
            Some(Protocol::Udp) => IPPROTO_UDP,
            None => 0,
        },
        long: body.bytes.into(),
        pad: 0,
    })
}

fn in_words(body: &Trace) -> String {
    let prefix = body.prefix.map_or_else(String::new, |prefix| format!("/{prefix}"));
    let parts = [
        body.address.map(|address| format!("{address}{prefix}")),
        body.port.map(|port| format!("port {port}")),
        body.protocol.map(|protocol| protocol.to_string()),
    ];
    let parts: Vec<_> = parts.into_iter().flatten().collect();
    if parts.is_empty() { "every packet".to_owned() } else { parts.join(", ") }
}

/// Passes on what the ring has, until nobody listens.
async fn tell(ring: RingBuf<MapData>, names: Names, body: &Trace, to: &mpsc::Sender<Traced>) {
    // SAFETY: the ring keeps its one descriptor open for as long as it lives.
    let mut ring = match unsafe { AsyncFd::register(ring) } {
        Ok(ring) => ring,
        Err(error) => return tracing::warn!("cannot listen to the program that traces: {error}"),
    };
    let origin = (Timestamp::now(), clock::nanoseconds());
    let (mut lost, end) = (0, Instant::now() + Duration::from_secs(body.seconds));
    loop {
        let Ok(mut guard) = ring.readable_mut().await else { return };
        let mut some = 0;
        while let Some(record) = guard.get_inner_mut().next() {
            let Some(mut traced) = read(&record, &names, body.bytes, origin) else { continue };
            drop(record);
            traced.lost += lost;
            match to.try_send(traced) {
                Ok(()) => {}
                Err(mpsc::error::TrySendError::Full(_)) => lost += 1,
                Err(mpsc::error::TrySendError::Closed(_)) => return,
            }
            some += 1;
            if some % 256 == 0 && (Instant::now() > end || to.is_closed()) {
                return;
            }
        }
        guard.clear_ready();
    }
}

fn read(record: &[u8], names: &Names, whole: bool, origin: (Timestamp, u64)) -> Option<Traced> {
    let (head, bytes) = record.split_at_checked(size_of::<Head>())?;
    let head: Head = bytemuck::pod_read_unaligned(head);
    let bytes = &bytes[..bytes.len().min(head.length as usize)];
    let ago = i64::try_from(head.at).ok()? - i64::try_from(origin.1).ok()?;
    let time = origin.0.checked_add(jiff::SignedDuration::from_nanos(ago)).ok()?;
    let seen = Seen { bytes, length: head.length as usize };
    let (from, to, kind) = describe(&seen);
    let point = match head.what {
        Head::ARRIVES => TracePoint::Arrives,
        what if what >= Head::GOES_ON => TracePoint::GoesOn,
        _ => TracePoint::Ends,
    };
    let reason = Reason::ALL.get(head.what as usize).filter(|_| point == TracePoint::Ends);
    let stage = Stage::ALL.get(head.what.wrapping_sub(Head::GOES_ON) as usize);
    let named = |id: u16| names.backends.get(&id).cloned().unwrap_or_else(|| format!("backend {id}"));
    let interface = |index: u32| names.interfaces.get(&index).cloned().unwrap_or_else(|| index.to_string());
    Some(Traced {
        api: Api::V1,
        time: format!("{time:.9}"),
        cpu: (head.number >> 48) as u16,
        packet: head.number & ((1 << 48) - 1),
        point,
        interface: (head.ifindex != 0).then(|| interface(head.ifindex)),
        length: head.length,
        from,
        to,
        kind,
        stage: stage.filter(|_| point == TracePoint::GoesOn).map(|stage| stage.program().to_owned()),
        action: reason.map(|reason| reason.action().name().to_owned()),
        reason: reason.map(|reason| reason.name().to_owned()),
        meaning: reason.map(|reason| reason.meaning().trim().to_owned()),
        backend: (head.backend != 0).then(|| named(head.backend)),
        begins: head.begins != 0,
        lost: head.lost.into(),
        bytes: whole.then(|| bytes.iter().map(|byte| format!("{byte:02x}")).collect()),
    })
}

/// The beginning of a frame.
struct Seen<'a> {
    bytes: &'a [u8],
    length: usize,
}

impl Packet for Seen<'_> {
    fn view<T: Wire>(&self, offset: usize) -> Option<&T> {
        self.bytes.get(offset..offset.checked_add(T::SIZE)?).map(bytemuck::from_bytes)
    }
    fn view_mut<T: Wire>(&mut self, _: usize) -> Option<&mut T> {
        None
    }
    fn reaches(&self, length: usize) -> bool {
        length <= self.length
    }
    fn ifindex(&self) -> u32 {
        0
    }
    fn grow_head(&mut self, _: usize) -> Option<()> {
        None
    }
    fn shrink_head(&mut self, _: usize) -> Option<()> {
        None
    }
    fn truncate(&mut self, _: usize) -> Option<()> {
        None
    }
}

fn describe(seen: &Seen<'_>) -> (Option<String>, Option<String>, String) {
    let network = match parse::network(seen) {
        Ok(network) => network,
        Err(reason) => return (None, None, reason.name().replace('_', " ")),
    };
    let ips = [network.source, network.destination].map(std::net::IpAddr::from);
    match parse::transport(seen, &network) {
        Ok(transport) => {
            let kind = match transport.kind {
                Kind::Syn(_) => "tcp syn",
                Kind::Rst => "tcp rst",
                Kind::Tcp(_) => "tcp",
                Kind::Udp => "udp",
            };
            let ports = [transport.source, transport.destination].map(Port::number);
            let [from, to] = [0, 1].map(|end| Some(SocketAddr::from((ips[end], ports[end])).to_string()));
            (from, to, kind.to_owned())
        }
        Err(_) => {
            let kind = match network.protocol {
                1 => "icmp".to_owned(),
                4 | 41 => "tunnel".to_owned(),
                58 => "icmpv6".to_owned(),
                number => format!("protocol {number}"),
            };
            let kind = if network.fragment { format!("fragment, {kind}") } else { kind };
            let [from, to] = ips.map(|ip| Some(ip.to_string()));
            (from, to, kind)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(body: Trace) -> Result<Filter, String> {
        filter(&body).map_err(|error| error.message)
    }

    #[test]
    fn a_network_is_an_address_with_the_bits_that_count() {
        let of = |address: &str, prefix| Trace { address: address.parse().ok(), prefix, ..Trace::default() };
        let one = asked(of("10.1.2.3", None)).unwrap();
        assert_eq!((one.address, one.mask.words()), (Address::v4([10, 1, 2, 3]), [u32::MAX; 4]));
        let net = asked(of("10.1.2.3", Some(8))).unwrap();
        assert_eq!(net.address, Address::v4([10, 0, 0, 0]), "what lies beyond the prefix does not count");
        assert_eq!(net.mask.words(), [u32::MAX, u32::MAX, u32::MAX, 0xff00_0000]);
        let six = asked(of("2001:db8::1", Some(32))).unwrap();
        assert_eq!(six.mask.words(), [u32::MAX, 0, 0, 0]);
        assert!(asked(Trace::default()).unwrap().is_any());
        assert!(asked(of("10.1.2.3", Some(33))).is_err() && asked(of("", Some(8))).is_err());
        assert!(asked(Trace { seconds: 601, ..Trace::default() }).is_err(), "no trace is forgotten");
    }
}
