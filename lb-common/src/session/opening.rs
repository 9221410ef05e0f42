//! Beginnings, ends, and everything else that no established session takes: what it means for the tables. The packet itself is
//! rewritten by [`carry`](super::carry), by what the tables say then.

use super::{Held, Session, SessionKey, after, flags, is_alive, is_closed, is_over, onward, toa};
use crate::abi::{FlowKey, HANDSHAKE_WINDOW, Mode, Port, Service, Settings};
use crate::fragment;
use crate::handshake::is_taken;
use crate::hash::mix;
use crate::parse::{self, Kind, Network, Transport};
use crate::pipeline::{Packet, Step, Tables, contains, empty, find_service, is_nats};
use crate::rewrite;
use crate::select;
use crate::stage::Stage;
use crate::verdict::{Event, Reason, Verdict};
use crate::wire::{IPPROTO_TCP, TCP_ACK, TCP_SYN, Tcp};

/// [`Stage::Opening`]: whatever no established session takes; and first fragments.
///
/// # Errors
///
/// Why it is not sent on.
#[inline(always)]
pub fn opening<T: Tables>(packet: &mut T::Packet, tables: &T) -> Result<Step, Reason> {
    let network = parse::network(packet)?;
    let settings = tables.settings().ok_or(Reason::NoTable)?;
    let transport = fragment::leading(packet, &network)?;
    let key = SessionKey::of(&network, &transport);
    let opening = tables.session(Held::Opening, &key);
    if let Some(found) = &opening
        && found.has(Session::REPLY)
    {
        return answer(packet, tables, &network, &transport, &key, found).map(Step::Next);
    }
    let client = match Client::of(tables, settings, &network, &transport, &key) {
        // The port stands for nobody; or the address only looks like one that does, and is a client's.
        // (Not a fragment: that stage has no use for it.)
        Err(Reason::NotOurs) if is_nats(settings, &network) && parse::transport(packet, &network).is_ok() => {
            return Ok(Step::Next(Stage::Reply));
        }
        client => client?,
    };
    let goes_on = if let Some(found) = opening {
        client.goes_on(packet, tables, &found)?
    } else if let Some(found) = tables.session(Held::Established, &key) {
        client.returns(tables, &found)
    } else {
        false
    };
    match transport.kind {
        Kind::Syn(_) if goes_on => Ok(Step::Next(after(client.service))),
        _ if goes_on => Ok(Step::Next(Stage::Carry)),
        _ => Ok(Step::Next(Stage::Begin)),
    }
}

/// [`Stage::Begin`]: from a client that has no session: it begins one, or is refused.
///
/// # Errors
///
/// Why it gets none.
#[inline(always)]
pub fn begin<T: Tables>(packet: &mut T::Packet, tables: &T) -> Result<Step, Reason> {
    let network = parse::network(packet)?;
    let settings = tables.settings().ok_or(Reason::NoTable)?;
    let transport = fragment::located(packet, &network)?;
    let key = SessionKey::of(&network, &transport);
    let client = Client::of(tables, settings, &network, &transport, &key)?;
    match transport.kind {
        Kind::Syn(_) | Kind::Udp => client.begins(packet, tables),
        Kind::Tcp(_) | Kind::Rst => {
            client.refused(packet, tables, Reason::NoSession, Reason::NoSessionReset).map(Step::End)
        }
    }
}

/// A backend's packet in a session that has yet to prove itself.
#[inline(always)]
fn answer<T: Tables>(
    packet: &mut T::Packet,
    tables: &T,
    network: &Network,
    transport: &Transport,
    key: &SessionKey,
    found: &Session,
) -> Result<Stage, Reason> {
    let forth = key.back(found);
    // The two halves can be forgotten one by one.
    tables.session(Held::Opening, &forth).filter(|other| other.answers(key)).ok_or(Reason::NotOurs)?;
    let segment = flags(packet, transport)?;
    if matches!(transport.kind, Kind::Udp) {
        if let Some(mut session) = tables.session_mut(Held::Opening, key) {
            session.flags |= Session::ANSWERED;
        }
    } else if segment & (TCP_SYN | TCP_ACK) == TCP_SYN | TCP_ACK {
        let header: &Tcp = packet.view(transport.l4).ok_or(Reason::Malformed)?;
        let sequence = u32::from_be_bytes(header.sequence);
        if let Some(mut session) = tables.session_mut(Held::Opening, key) {
            session.flags |= Session::ANSWERED;
            session.sequence = sequence;
        }
        let service = tables.service(found.service).ok_or(Reason::NoTable)?;
        if service.has(Service::CLAMPED) {
            rewrite::clamp_mss(packet, network, transport, service.clamp_mss);
        }
    }
    onward(tables, found)
}

/// A client's packet to a service.
struct Client<'a> {
    settings: &'a Settings,
    network: &'a Network,
    transport: &'a Transport,
    key: &'a SessionKey,
    service: &'a Service,
    /// Of the service.
    index: u32,
}

impl<'a> Client<'a> {
    #[inline(always)]
    fn of<T: Tables>(
        tables: &'a T,
        settings: &'a Settings,
        network: &'a Network,
        transport: &'a Transport,
        key: &'a SessionKey,
    ) -> Result<Self, Reason> {
        if !contains(&settings.vips, network.destination) {
            return Err(Reason::NotOurs);
        }
        let index = find_service(tables, network, transport).ok_or(Reason::NotOurs)?;
        let service = tables.service(index).ok_or(Reason::NoTable)?;
        if service.mode != Mode::FullNat as u8 {
            return Err(Reason::NotOurs);
        }
        Ok(Self { settings, network, transport, key, service, index })
    }

    /// In a session that has yet to prove itself. `false`: it is void, and gone.
    #[inline(always)]
    fn goes_on<T: Tables>(&self, packet: &T::Packet, tables: &T, found: &Session) -> Result<bool, Reason> {
        let behind = self.key.back(found);
        let other = tables.session(Held::Opening, &behind).filter(|other| other.answers(self.key));
        let stands =
            is_alive(tables, found) && other.as_ref().is_some_and(|other| self.stands(tables, found, other));
        let Some(other) = other.filter(|_| stands) else {
            self.drop(tables, Held::Opening, &behind);
            return Ok(false);
        };
        if found.has(Session::TOA) && matches!(self.transport.kind, Kind::Tcp(_)) {
            if packet.is_claimed(self.transport.l4, self.network.end) {
                return Err(Reason::ForgedAddress);
            }
            // Whoever is yet to be accepted would be without.
            let target = super::target(tables, found)?;
            if !toa::fits(packet, self.network, self.transport, target.device)? {
                return Err(Reason::TooBig);
            }
        }
        if other.has(Session::ANSWERED) && self.proves(packet, other.sequence)? && self.tells(packet, found) {
            self.establish(tables, found, &other, &behind);
        }
        Ok(true)
    }

    /// Whether a packet belongs to the session of its addresses and ports, and does not begin another one.
    #[inline(always)]
    fn stands<T: Tables>(&self, tables: &T, found: &Session, other: &Session) -> bool {
        match self.transport.kind {
            Kind::Syn(sequence) => {
                found.sequence == sequence && !is_closed(found, other) && self.same_pool(tables, found)
            }
            Kind::Udp => {
                let both = (found, Some(other));
                !is_over(self.settings, self.key.protocol, Held::Opening, both, tables.ticks(), 0)
            }
            Kind::Tcp(_) | Kind::Rst => true,
        }
    }

    /// Whether the sender gets what its backend sends, whose first number was `drawn`.
    #[inline(always)]
    fn proves<P: Packet>(&self, packet: &P, drawn: u32) -> Result<bool, Reason> {
        match self.transport.kind {
            Kind::Udp => Ok(true),
            Kind::Tcp(_) => {
                let header: &Tcp = packet.view(self.transport.l4).ok_or(Reason::Malformed)?;
                let ahead = u32::from_be_bytes(header.acknowledgement).wrapping_sub(drawn).wrapping_sub(1);
                Ok(header.flags & TCP_ACK != 0 && ahead < HANDSHAKE_WINDOW)
            }
            Kind::Syn(_) | Kind::Rst => Ok(false),
        }
    }

    /// Whether a backend that is to be told of its client has heard of it, if it takes this packet. Before that each segment
    /// has the option: the backend takes any of them for the end of its handshake.
    #[inline(always)]
    fn tells<P: Packet>(&self, packet: &P, found: &Session) -> bool {
        let Kind::Tcp(sequence) = self.transport.kind else { return true };
        if !found.has(Session::TOA) {
            return true;
        }
        sequence == found.sequence.wrapping_add(1) && is_taken(packet, self.network, self.transport)
    }

    /// Moves a session to where nothing is pushed out. The entry of the replies first: whoever looks for a port must see it.
    #[inline(always)]
    fn establish<T: Tables>(&self, tables: &T, found: &Session, other: &Session, behind: &SessionKey) {
        if !tables.keep_session(Held::Established, behind, other, true) {
            return tables.event(Event::SessionsFull);
        }
        if !tables.keep_session(Held::Established, self.key, found, false) {
            tables.drop_session(Held::Established, behind);
            return tables.event(Event::SessionsFull);
        }
        self.drop(tables, Held::Opening, behind);
        tables.event(Event::SessionEstablished);
    }

    /// A SYN in an established session, or a packet of a void one. `false`: it is void or replaced, and gone.
    #[inline(always)]
    fn returns<T: Tables>(&self, tables: &T, found: &Session) -> bool {
        let behind = self.key.back(found);
        let other = tables.session(Held::Established, &behind).filter(|other| other.answers(self.key));
        let goes_on = is_alive(tables, found)
            && match (self.transport.kind, &other) {
                (_, None) => false,
                (Kind::Syn(sequence), _) if sequence == found.sequence => true,
                (Kind::Syn(_) | Kind::Udp, Some(other)) => {
                    let both = (found, Some(&**other));
                    let now = tables.ticks();
                    !is_closed(found, other)
                        && !is_over(self.settings, self.key.protocol, Held::Established, both, now, 0)
                }
                _ => true,
            };
        if !goes_on {
            self.drop(tables, Held::Established, &behind);
        } else if let Kind::Syn(sequence) = self.transport.kind
            && found.has(Session::TOA)
            && let Some(mut session) = tables.session_mut(Held::Established, self.key)
        {
            // The backend may have lost the old connection, and has to be told of the new one's client.
            session.sequence = sequence;
        }
        goes_on
    }

    #[inline(always)]
    fn drop<T: Tables>(&self, tables: &T, held: Held, behind: &SessionKey) {
        tables.drop_session(held, behind);
        tables.drop_session(held, self.key);
    }

    /// Whether a flow that begins now would go to the pool of `found`: after a rollback nothing enters the canary.
    #[inline(always)]
    fn same_pool<T: Tables>(&self, tables: &T, found: &Session) -> bool {
        let Ok(choice) = select::fresh(tables, self.service, &self.flow()) else { return false };
        let Some(chosen) = tables.backend(choice.backend) else { return false };
        let Some(had) = tables.backend(found.backend) else { return false };
        // A cap may have sent it past the canary.
        had.pool == chosen.pool || self.service.has(Service::CAPPED) && had.pool == self.service.stable_pool
    }

    #[inline(always)]
    const fn flow(&self) -> FlowKey {
        FlowKey::of_request(self.network, self.transport, self.index)
    }

    /// A new session.
    #[inline(always)]
    fn begins<T: Tables>(&self, packet: &mut T::Packet, tables: &T) -> Result<Step, Reason> {
        let flow = self.flow();
        let choice = select::admitted(tables, self.service, &flow)?;
        if choice.backend == 0 {
            return empty(packet, tables, self.service, self.network, self.transport).map(Step::End);
        }
        let backend = tables.backend(choice.backend).ok_or(Reason::NoTable)?;
        let life = backend.life();
        if !life.is_usable() {
            return Err(Reason::BackendGone);
        }
        // Not from `kind`: LLVM keeps what stands there in a datagram, which the verifier refuses to see copied.
        let sequence = match packet.view::<Tcp>(self.transport.l4) {
            Some(header) if self.transport.protocol == IPPROTO_TCP => u32::from_be_bytes(header.sequence),
            _ => 0,
        };
        // Another port for each connection, also of the same client.
        let hash = mix(choice.hash ^ ((flow.ports() as u64) << 32 | sequence as u64));
        let source = self.settings.source(backend, hash as u32);
        let port = if backend.port.is_any() { self.transport.destination } else { backend.port };
        let fresh = tables.with_draft(|draft| {
            draft.request = *self.key;
            draft.key = SessionKey {
                source: backend.address,
                destination: source,
                source_port: port,
                destination_port: Port::ANY,
                protocol: self.key.protocol,
            };
            draft.session = Session {
                source: self.key.destination,
                destination: self.key.source,
                source_port: self.key.destination_port,
                destination_port: self.key.source_port,
                backend: choice.backend,
                flags: Session::REPLY,
                generation: life.generation(),
                service: self.index,
                seen: tables.ticks(),
                ..Session::default()
            };
            if source.is_unspecified() || !tables.reserve(self.settings, &mut *draft, hash) {
                return false;
            }
            let session = &mut draft.session;
            session.source = source;
            session.destination = backend.address;
            session.source_port = draft.key.destination_port;
            session.destination_port = port;
            session.flags = Session::FRESH | if self.service.has(Service::TOA) { Session::TOA } else { 0 };
            session.sequence = sequence;
            if !tables.keep_session(Held::Opening, &draft.request, session, false) {
                tables.event(Event::TrackFailed);
            }
            true
        });
        if !fresh.ok_or(Reason::NoTable)? {
            return self.refused(packet, tables, Reason::NoPort, Reason::NoPortReset).map(Step::End);
        }
        Ok(Step::Next(after(self.service)))
    }

    /// A RST where that is what the service gives.
    #[inline(always)]
    fn refused<T: Tables>(
        &self,
        packet: &mut T::Packet,
        tables: &T,
        silently: Reason,
        with_reset: Reason,
    ) -> Result<Verdict, Reason> {
        if !rewrite::answers_with_reset(self.service, self.transport.kind) {
            return Err(silently);
        }
        let ifindex = packet.ifindex();
        // A fragment is not answered, nor left to the host, which would answer all of them.
        tables.reset(packet, self.network).map_err(|reason| match reason {
            Reason::Malformed => silently,
            reason => reason,
        })?;
        Ok(Verdict { ifindex, ..Verdict::of(with_reset) })
    }
}
