//! What is measured: services, frames, and where each frame has to end.

use std::net::IpAddr;

use lb_common::quic::Codec;
use lb_common::verdict::Reason;
use lb_tests::packets::{Frame, Tcp, Udp, flags};
use lb_tests::test_run::Action;
use lb_tests::{Family, Mac};

use crate::bed::{self, Bed, CLIENTS_V4, CLIENTS_V6, PORT, Spec, equal};
use crate::driver::{LENGTH, Template};
use crate::sessions::FLOWS;

/// A line of the table.
pub struct Row {
    /// What the packets are.
    pub name: &'static str,
    /// Under which heading.
    pub group: Group,
    /// What they are made from.
    pub template: Template,
    /// Where each of them has to end.
    pub expect: Expect,
}

/// Headings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Group {
    /// Slots and split are settled: the hash says it all.
    Settled,
    /// The other modes.
    Modes,
    /// A canary: two hashes instead of one.
    Canary,
    /// A rollout is under way, and handshakes are measured.
    Measured,
    /// Connection ids name backends.
    Quic,
    /// Slots that are changing.
    Unsettled,
    /// Lists and rates.
    Guarded,
}

impl Group {
    /// In words.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Settled => "settled, dsr-ipip",
            Self::Modes => "settled, other modes",
            Self::Canary => "with a canary, dsr-ipip",
            Self::Measured => "measured: a rollout at 10 %, settled, nat",
            Self::Quic => "QUIC by connection id, dsr-ipip",
            Self::Unsettled => "slots that are changing, dsr-ipip",
            Self::Guarded => "guarded, settled, dsr-ipip",
        }
    }
}

/// Where packets end.
#[derive(Clone, Copy, Debug)]
pub struct Expect {
    /// Their reason.
    pub reason: Reason,
    /// Whether each of them needs more than its hash, or none does.
    pub slow: bool,
    /// What the frame of flow 0 has become.
    pub shape: Shape,
}

/// What becomes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// It lies in another packet, whose header has so many bytes.
    Tunnel(usize),
    /// An address and a port are others.
    Translated,
    /// Only the hardware addresses are others.
    Link,
    /// It is as it was.
    Untouched,
    /// It goes nowhere.
    Dropped,
}

impl Shape {
    /// What the program has to return.
    pub const fn action(self) -> Action {
        match self {
            Self::Untouched => Action::Pass,
            Self::Dropped => Action::Drop,
            _ => Action::Transmit,
        }
    }
}

/// The services that the rows talk to.
pub struct Services {
    /// `dsr-ipip`, v4 in v4.
    pub tcp4: Spec,
    udp4: Spec,
    tcp6: Spec,
    nat4: Spec,
    nat_udp4: Spec,
    nat6: Spec,
    /// Its sessions are there before anything is measured.
    pub full4: Spec,
    /// The same in IPv6.
    pub full6: Spec,
    l2: Spec,
    /// Gets a canary at 10 % before anything is measured.
    pub canary: Spec,
    /// Gets a rollout at 10 %, likewise.
    pub measured: Spec,
    /// Connection ids as they are, as one encrypted block, and encrypted in three and in four passes.
    quic: [Spec; 4],
    /// Every slot changes hands.
    pub moved: Spec,
    /// Every slot changes hands and back.
    pub marked: Spec,
    /// UDP, every slot changes hands.
    pub moved_udp: Spec,
    /// It denies a thousand networks that no client is in.
    listed: Spec,
    /// Each source has a rate that it keeps to.
    paced: Spec,
    /// It denies every client.
    denying: Spec,
}

impl Services {
    /// All of them.
    pub fn new() -> Self {
        let fallow = |first: u16| {
            let mut pool = equal(first..first + 10);
            pool.extend((first + 10..first + 20).map(|number| (number, 0)));
            vec![pool]
        };
        Self {
            tcp4: Spec::new("tcp4", 0),
            udp4: Spec { protocol: "udp", ..Spec::new("udp4", 0) },
            tcp6: Spec { family: Family::V6, ..Spec::new("tcp6", 0) },
            nat4: Spec { mode: "nat", pools: vec![equal(20..30)], ..Spec::new("nat4", 1) },
            nat_udp4: Spec {
                mode: "nat",
                protocol: "udp",
                pools: vec![equal(20..30)],
                ..Spec::new("nat-udp4", 1)
            },
            nat6: Spec {
                mode: "nat",
                family: Family::V6,
                pools: vec![equal(20..30)],
                ..Spec::new("nat6", 1)
            },
            full4: Spec { mode: "full-nat", pools: vec![equal(20..30)], ..Spec::new("full4", 6) },
            full6: Spec {
                mode: "full-nat",
                family: Family::V6,
                pools: vec![equal(20..30)],
                ..Spec::new("full6", 6)
            },
            l2: Spec { mode: "dsr-l2", ..Spec::new("l2", 2) },
            canary: Spec { pools: vec![equal(0..10), equal(10..20)], ..Spec::new("canary", 3) },
            measured: Spec {
                mode: "nat",
                pools: vec![equal(200..210), equal(210..220)],
                ..Spec::new("measured", 7)
            },
            quic: [
                ("quic-plain", 8, 2, 6, None),
                ("quic-block", 9, 4, 12, Some([0x5a; 16])),
                ("quic-three", 10, 3, 8, Some([0x5b; 16])),
                ("quic-four", 11, 9, 8, Some([0x5c; 16])),
            ]
            .map(|(name, vip, server_id_length, nonce_length, key)| {
                let quic = Some(Codec { config: 2, server_id_length, nonce_length, key });
                Spec { protocol: "udp", quic, ..Spec::new(name, vip) }
            }),
            moved: Spec { pools: fallow(40), ..Spec::new("moved", 4) },
            marked: Spec { pools: fallow(60), ..Spec::new("marked", 5) },
            moved_udp: Spec { protocol: "udp", pools: fallow(80), ..Spec::new("moved-udp", 4) },
            listed: Spec {
                protection: format!("deny = [{}]", denied().join(", ")),
                ..Spec::new("listed", 8)
            },
            paced: Spec {
                protection: "source_max_packets_per_second = 1000000000\nsource_prefix_v4 = 24".to_owned(),
                ..Spec::new("paced", 9)
            },
            denying: Spec { protection: format!("deny = [\"{CLIENTS_V4}\"]"), ..Spec::new("denying", 10) },
        }
    }

    /// For [`Bed::start`].
    pub fn all(&self) -> Vec<Spec> {
        let Self {
            tcp4,
            udp4,
            tcp6,
            nat4,
            nat_udp4,
            nat6,
            full4,
            full6,
            l2,
            canary,
            measured,
            quic,
            moved,
            marked,
            moved_udp,
            listed,
            paced,
            denying,
        } = self;
        let ordinary = [
            tcp4, udp4, tcp6, nat4, nat_udp4, nat6, full4, full6, l2, canary, measured, moved, marked,
            moved_udp, listed, paced, denying,
        ];
        ordinary.into_iter().chain(quic).cloned().collect()
    }

    /// The table.
    pub fn rows(&self, bed: &Bed) -> Vec<Row> {
        let to = |spec: &Spec, segment, flows| request(bed, spec, segment, flows);
        let tunnel4 = Expect { reason: Reason::Forwarded, slow: false, shape: Shape::Tunnel(20) };
        let tunnel6 = Expect { shape: Shape::Tunnel(40), ..tunnel4 };
        let translated = Expect { shape: Shape::Translated, ..tunnel4 };
        let replied = Expect { reason: Reason::Replied, ..translated };
        let link = Expect { shape: Shape::Link, ..tunnel4 };
        let slow = Expect { slow: true, ..tunnel4 };
        let not_ours = Expect { reason: Reason::NotOurs, slow: false, shape: Shape::Untouched };
        let nobody = Spec { vip: 99, ..self.tcp4.clone() };

        let kept_away = Expect { reason: Reason::Denied, slow: false, shape: Shape::Dropped };

        let [plain, block, three, four] = &self.quic;
        use Group::{Canary, Guarded, Measured, Modes, Quic, Settled, Unsettled};
        use Segment::{Ack, Datagram, Initial, Short, Syn};
        let row = |group, name, template, expect| Row { name, group, template, expect };
        vec![
            row(Settled, "TCP v4, 1 flow", to(&self.tcp4, Ack, 1), tunnel4),
            row(Settled, "TCP v4, 1 024 flows", to(&self.tcp4, Ack, 1024), tunnel4),
            row(Settled, "TCP v4, 100 000 flows", to(&self.tcp4, Ack, 100_000), tunnel4),
            row(Settled, "TCP SYN v4, 100 000 flows", to(&self.tcp4, Syn, 100_000), tunnel4),
            row(Settled, "TCP SYN v4, 1 000 000 flows (a flood)", to(&self.tcp4, Syn, 1_000_000), tunnel4),
            row(Settled, "UDP v4, 100 000 flows", to(&self.udp4, Datagram, 100_000), tunnel4),
            row(Settled, "TCP v6, 1 024 flows", to(&self.tcp6, Ack, 1024), tunnel6),
            row(Settled, "not ours (passed up)", to(&nobody, Ack, 1024), not_ours),
            row(Modes, "nat, TCP v4, 1 024 flows", to(&self.nat4, Ack, 1024), translated),
            row(Modes, "nat, TCP v4, 100 000 flows", to(&self.nat4, Ack, 100_000), translated),
            row(Modes, "nat, TCP v4, 1 024 flows, replies", reply(bed, &self.nat4, 1024), replied),
            row(Modes, "nat, TCP v4, 100 000 flows, replies", reply(bed, &self.nat4, 100_000), replied),
            row(Modes, "nat, UDP v4, 100 000 flows", to(&self.nat_udp4, Datagram, 100_000), translated),
            row(Modes, "nat, TCP v6, 1 024 flows", to(&self.nat6, Ack, 1024), translated),
            row(Modes, "nat, TCP v6, 1 024 flows, replies", reply(bed, &self.nat6, 1024), replied),
            row(Modes, "full-nat, TCP v4, 1 024 flows", to(&self.full4, Ack, 1024), translated),
            row(Modes, "full-nat, TCP v4, 100 000 flows", to(&self.full4, Ack, FLOWS), translated),
            row(
                Modes,
                "full-nat, TCP v4, 100 000 flows, replies",
                stood_in(bed, &self.full4, FLOWS),
                replied,
            ),
            row(Modes, "full-nat, TCP v6, 1 024 flows", to(&self.full6, Ack, 1024), translated),
            row(Modes, "dsr-l2, TCP v4, 1 024 flows", to(&self.l2, Ack, 1024), link),
            row(Modes, "dsr-l2, TCP v4, 100 000 flows", to(&self.l2, Ack, 100_000), link),
            row(Canary, "10 % settled, TCP v4, 1 024 flows", to(&self.canary, Ack, 1024), tunnel4),
            row(Canary, "10 % settled, TCP v4, 100 000 flows", to(&self.canary, Ack, 100_000), tunnel4),
            row(Measured, "TCP v4, 1 024 flows", to(&self.measured, Ack, 1024), translated),
            row(Measured, "TCP v4, 1 024 flows, replies", reply(bed, &self.measured, 1024), replied),
            row(Measured, "TCP v4, 100 000 flows, replies", reply(bed, &self.measured, 100_000), replied),
            row(
                Guarded,
                "TCP v4, 100 000 flows, 1 000 networks denied",
                to(&self.listed, Ack, 100_000),
                tunnel4,
            ),
            row(
                Guarded,
                "TCP v4, 100 000 flows, 391 sources with rates",
                to(&self.paced, Ack, 100_000),
                tunnel4,
            ),
            row(
                Guarded,
                "TCP SYN v4, 1 000 000 flows, all denied",
                to(&self.denying, Syn, 1_000_000),
                kept_away,
            ),
            row(Quic, "short header, id as it is, 1 024 clients", to(plain, Short, 1024), tunnel4),
            row(Quic, "short header, id as it is, 100 000 clients", to(plain, Short, 100_000), tunnel4),
            row(Quic, "short header, id in one AES block, 1 024 clients", to(block, Short, 1024), tunnel4),
            row(Quic, "short header, id in three AES passes, 1 024 clients", to(three, Short, 1024), tunnel4),
            row(Quic, "short header, id in four AES passes, 1 024 clients", to(four, Short, 1024), tunnel4),
            row(Quic, "Initial, by the ordinary rule, 1 024 clients", to(plain, Initial, 1024), tunnel4),
            row(Unsettled, "TCP v4, 1 024 flows, captured", to(&self.moved, Ack, 1024), slow),
            row(Unsettled, "TCP v4, 100 000 flows, captured", to(&self.moved, Ack, 100_000), slow),
            row(Unsettled, "TCP v4, 100 000 flows, moved and back", to(&self.marked, Ack, 100_000), slow),
            row(Unsettled, "TCP SYN v4, 100 000 flows, repeated", to(&self.moved, Syn, 100_000), slow),
            row(Unsettled, "TCP SYN v4, 1 000 000 flows (a flood)", to(&self.moved, Syn, 1_000_000), slow),
            row(Unsettled, "UDP v4, 100 000 flows, captured", to(&self.moved_udp, Datagram, 100_000), slow),
        ]
    }
}

/// Networks that no client is in, of every length.
fn denied() -> Vec<String> {
    let networks = (0..1_000_u32).map(|n| {
        let length = 20 + n % 13;
        let address = (172 << 24 | 16 << 16 | n << 10) & u32::MAX << (32 - length);
        format!("\"{}/{length}\"", std::net::Ipv4Addr::from_bits(address))
    });
    let all: std::collections::BTreeSet<String> = networks.collect();
    all.into_iter().collect()
}

/// What the packets of a row are.
#[derive(Clone, Copy)]
enum Segment {
    /// TCP of an established connection.
    Ack,
    /// A new connection.
    Syn,
    /// UDP.
    Datagram,
    /// QUIC of an established connection.
    Short,
    /// A new one.
    Initial,
}

/// From clients to a service.
fn request(bed: &Bed, spec: &Spec, segment: Segment, flows: u32) -> Template {
    let hardware = (bed.lab.client(0).mac(), bed.lab.balancer().mac());
    let ends = [(client(spec.family), Template::FIRST_PORT), (bed.vip(spec), PORT)];
    let (address, port) = match spec.family {
        Family::V4 => (26, 34),
        Family::V6 => (34, 54),
    };
    let payload = match (segment, &spec.quic) {
        (Segment::Short, Some(codec)) => {
            let server = bed::server_id(codec, spec.pools[0][3].0);
            let id = codec.encode(&server, &vec![0x3c; codec.nonce_length.into()]);
            [&[0x41], &id.expect("a server id of its length")[..]].concat()
        }
        (Segment::Initial, _) => [&[0xc3, 0, 0, 0, 1, 8][..], &[0x11; 8], &[0]].concat(),
        _ => Vec::new(),
    };
    Template { frame: frame(hardware, ends, segment, &payload), address, port, pad: 0, flows }
}

/// From the first backend of a `nat` service to its clients.
fn reply(bed: &Bed, spec: &Spec, flows: u32) -> Template {
    let sender = bed::backend(spec.pools[0][0].0, spec.family);
    let hardware = (Mac([2, 0, 0, 0, 0, 99]), bed.lab.balancer().mac());
    let ends = [(sender, PORT), (client(spec.family), Template::FIRST_PORT)];
    let (address, port) = match spec.family {
        Family::V4 => (30, 36),
        Family::V6 => (50, 56),
    };
    Template { frame: frame(hardware, ends, Segment::Ack, &[]), address, port, pad: 0, flows }
}

/// To the balancer's own address, at ports that stand for clients. (The driver changes the sender, too.)
fn stood_in(bed: &Bed, spec: &Spec, flows: u32) -> Template {
    let hardware = (Mac([2, 0, 0, 0, 0, 99]), bed.lab.balancer().mac());
    let ends = [(client(spec.family), PORT), (bed.lab.balancer().ip(spec.family), Template::FIRST_PORT)];
    let (address, port) = match spec.family {
        Family::V4 => (26, 36),
        Family::V6 => (34, 56),
    };
    Template { frame: frame(hardware, ends, Segment::Ack, &[]), address, port, pad: 0, flows }
}

fn client(family: Family) -> IpAddr {
    match family {
        Family::V4 => CLIENTS_V4.network().into(),
        Family::V6 => CLIENTS_V6.network().into(),
    }
}

fn frame((from, to): (Mac, Mac), ends: [(IpAddr, u16); 2], segment: Segment, payload: &[u8]) -> [u8; LENGTH] {
    let [(source, source_port), (destination, destination_port)] = ends;
    let head = Frame::ethernet(from, to).ip(source, destination);
    let head = match segment {
        Segment::Ack => head.tcp(Tcp::new(source_port, destination_port).flags(flags::ACK)),
        Segment::Syn => head.tcp(Tcp::new(source_port, destination_port).syn()),
        Segment::Datagram | Segment::Short | Segment::Initial => {
            head.udp(Udp::new(source_port, destination_port))
        }
    };
    let room = LENGTH - head.build().len();
    let mut payload = payload.to_vec();
    payload.resize(room, 0xa5);
    let frame = head.payload(&payload).build();
    frame.try_into().expect("it was filled up to this length")
}
