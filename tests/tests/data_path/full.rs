//! What becomes of flows when the tables that track them are full.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use lb_common::abi::{Mode, Slot};
use lb_common::host::{ServiceSpec, Tables};
use lb_common::settle::Patience;
use lb_common::verdict::{Event, Reason};
use lb_tests::packets::{Frame, Tcp, Udp, flags};
use lb_tests::test_run::Action;
use lb_tests::{Mac, claim};
use lb_userspace::dataplane::Capacities;
use lb_userspace::publish::Publisher;
use lb_userspace::sweep::{Books, sweep};
use libtest_mimic::Trial;

use crate::kernel::{Kernel, ROOM};
use crate::network::Network;

pub fn claims() -> Vec<Trial> {
    vec![
        claim("a flood of SYNs fills its own table only, and every SYN goes to a backend", flood),
        claim("with full tables no packet is dropped, and what is forgotten is counted", forgotten),
        claim("forgotten UDP flows are counted, too", forgotten_udp),
    ]
}

/// Room in each table of flows.
const FEW: u32 = 64;
/// Flows of a test.
const MANY: u16 = 5000;

const VIP: [u8; 4] = [203, 0, 113, 10];
const CLIENT: [u8; 4] = [198, 51, 100, 200];

/// A service whose every slot is on its way from one backend to another, and little room.
struct Bed {
    kernel: Kernel,
    network: Network,
    /// Hardware address of the backend of old flows.
    old: [u8; 6],
    /// And of that of new ones.
    new: [u8; 6],
}

impl Bed {
    fn new(udp: bool) -> Result<Self> {
        let network = Network::new()?;
        let mut tables = Tables::new();
        tables.devices = network.devices().to_vec();
        let vip: IpAddr = VIP.into();
        let spec =
            if udp { ServiceSpec::udp(vip, 80, Mode::DsrL2) } else { ServiceSpec::tcp(vip, 80, Mode::DsrL2) };
        let service = tables.add_service(&spec);
        let at = |n| SocketAddr::from(([10, 1, 0, n], 80));
        let ids = tables.add_pool(service, false, &[(at(11), 1), (at(12), 1)]);
        for slot in &tables.slots[..spec.table_size as usize] {
            slot.set(Slot::of(ids[1], ids[0], 1));
        }
        let mac = |id: u16| tables.backends[usize::from(id)].next_hop().mac().context("a hardware address");
        let (old, new) = (mac(ids[0])?, mac(ids[1])?);
        let egress = network.egress();
        let kernel = network.namespace().run(move || -> Result<Kernel> {
            let few = Capacities { flows: FEW, udp_flows: FEW, half_open: FEW, ..ROOM };
            let kernel = Kernel::load(few)?;
            kernel.fill(&tables, &egress)?;
            Ok(kernel)
        })?;
        Ok(Self { kernel, network, old, new })
    }

    /// Sends a segment of the flow from `port`; returns the hardware address that it leaves to.
    fn segment(&self, port: u16, flags: u8, sequence: u32) -> Result<[u8; 6]> {
        self.send(frame().tcp(Tcp::new(port, 80).flags(flags).sequence(sequence)))
    }

    fn send(&self, frame: Frame) -> Result<[u8; 6]> {
        let port = self.network.port();
        let outcome =
            self.network.namespace().run(|| self.kernel.run(&frame.payload(b"data").build(), port))?;
        ensure!(outcome.action == Action::Transmit, "{:?}", outcome.action);
        outcome.frame.first_chunk().copied().context("a frame has an address")
    }

    /// How often: transmitted, and the events.
    fn counts(&self, events: &[Event]) -> Result<Vec<u64>> {
        let counters = self.kernel.maps.counters()?;
        let transmitted = counters.reasons[Reason::Forwarded as usize];
        Ok([transmitted]
            .into_iter()
            .chain(events.iter().map(|event| counters.events[*event as usize]))
            .collect())
    }

    fn sweep(&self, publisher: &mut Publisher, books: &mut Books) -> Result<u64> {
        let patience = Patience { drain: 1000, tcp_idle: 1000, udp_idle: 1000 };
        Ok(sweep(publisher, &patience, books)?.kept)
    }

    fn publisher(&self) -> Result<Publisher> {
        let now = lb_userspace::clock::ticks();
        Ok(Publisher::adopt(std::sync::Arc::clone(&self.kernel.maps), now)?)
    }
}

fn frame() -> Frame {
    Frame::ethernet(Mac([2, 0, 0, 0, 0, 9]), Mac([2, 0, 0, 0, 0, 1])).ip(CLIENT.into(), VIP.into())
}

fn ports() -> std::ops::Range<u16> {
    10_000..10_000 + MANY
}

fn flood() -> Result<()> {
    let bed = Bed::new(false)?;
    // A flow that is there before, and stays: its entry is in another table.
    ensure!(bed.segment(9, flags::SYN, 1)? == bed.new && bed.segment(9, flags::ACK, 2)? == bed.new);
    for port in ports() {
        ensure!(bed.segment(port, flags::SYN, 1)? == bed.new, "the SYN from port {port} goes by `new`");
    }
    ensure!(bed.segment(9, flags::ACK, 3)? == bed.new, "an established flow stays");
    let noted = u64::from(MANY) + 1;
    let counts = bed.counts(&[Event::HandshakeNoted, Event::FlowTracked, Event::TrackFailed])?;
    ensure!(counts == [noted + 2, noted, 1, 0], "{counts:?}");
    ensure!(bed.kernel.maps.half_open.count()? <= FEW as usize && bed.kernel.maps.flows.count()? == 1);
    // The handshake of a SYN that was pushed out: whoever is unknown is old.
    ensure!(bed.segment(ports().start, flags::ACK, 2)? == bed.old);
    Ok(())
}

fn forgotten() -> Result<()> {
    let bed = Bed::new(false)?;
    let (mut publisher, mut books) = (bed.publisher()?, Books::default());
    bed.sweep(&mut publisher, &mut books)?;
    for port in ports() {
        ensure!(bed.segment(port, flags::SYN, 1)? == bed.new && bed.segment(port, flags::ACK, 2)? == bed.new);
    }
    let last = ports().end - 1;
    ensure!(bed.segment(last, flags::ACK, 3)? == bed.new, "the newest flow is known");
    let many = u64::from(MANY);
    let counts = bed.counts(&[Event::FlowTracked, Event::TrackFailed])?;
    ensure!(counts == [2 * many + 1, many, 0], "{counts:?}");
    let kept = bed.sweep(&mut publisher, &mut books)?;
    ensure!(kept <= FEW.into() && books.forgotten() == many - kept, "{kept} kept of {many}: {books:?}");
    ensure!(books.lately() == books.forgotten());

    // Flows that were forgotten go home, as all that are unknown, and are known from then on.
    ensure!(bed.segment(ports().start, flags::ACK, 3)? == bed.old);
    ensure!(bed.segment(ports().start, flags::ACK, 4)? == bed.old);
    let counts = bed.counts(&[Event::FlowTracked, Event::TrackFailed])?;
    ensure!(counts == [2 * many + 3, many + 1, 0], "{counts:?}");
    let now_kept = bed.sweep(&mut publisher, &mut books)?;
    ensure!(books.forgotten() == many + 1 - now_kept, "{now_kept} kept: {books:?}");
    Ok(())
}

fn forgotten_udp() -> Result<()> {
    let bed = Bed::new(true)?;
    let (mut publisher, mut books) = (bed.publisher()?, Books::default());
    bed.sweep(&mut publisher, &mut books)?;
    for port in ports() {
        // An unknown flow may be an old one.
        ensure!(bed.send(frame().udp(Udp::new(port, 80)))? == bed.old, "port {port}");
    }
    let many = u64::from(MANY);
    let counts = bed.counts(&[Event::UdpFlowTracked, Event::TrackFailed])?;
    ensure!(counts == [many, many, 0], "{counts:?}");
    let kept = bed.sweep(&mut publisher, &mut books)?;
    ensure!(kept <= FEW.into() && books.forgotten() == many - kept, "{kept} kept of {many}: {books:?}");
    Ok(())
}
