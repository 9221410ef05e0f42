//! What the loaded program lets through of what comes too often.

use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lb_common::abi::{Address, Mode, Service};
use lb_common::guard::{Guard, Rate};
use lb_common::host::{ServiceSpec, Tables};
use lb_common::verdict::Reason;
use lb_tests::packets::{Frame, Tcp, flags};
use lb_tests::test_run::TestRun;
use lb_tests::{Mac, claim};
use libtest_mimic::Trial;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

use crate::kernel::{Kernel, ROOM};
use crate::network::Network;

pub fn claims() -> Vec<Trial> {
    vec![
        claim(
            "each CPU answers fifty times at once with RSTs, and lets the host do so, and no more",
            messages,
        ),
        claim("a flood on all CPUs at once gets no more through than its rate", rates),
        claim("a flood from made-up sources takes no more memory than there is for them", sources),
    ]
}

const VIP: [u8; 4] = [203, 0, 113, 10];
const STATION: Mac = Mac([2, 0xc1, 0, 0, 0, 1]);

/// A service with or without a backend, which is guarded.
fn tables(network: &Network, backend: bool, guard: Guard) -> Tables {
    let mut tables = Tables::new();
    tables.devices = network.devices().to_vec();
    let spec =
        ServiceSpec { flags: Service::GUARDED, ..ServiceSpec::tcp(IpAddr::from(VIP), 80, Mode::DsrL2) };
    let index = tables.add_service(&spec);
    if backend {
        tables.add_pool(index, false, &[(SocketAddr::from(([10, 1, 0, 11], 80)), 1)]);
    }
    tables.guards.insert(index, Guard { source_mask: Address::v6(&[0xff; 16]), ..guard });
    tables
}

fn segment(network: &Network, source: u32, begins: bool) -> Vec<u8> {
    let own = Mac(network.devices()[0].mac);
    let head = Frame::ethernet(STATION, own).ip(std::net::Ipv4Addr::from_bits(source).into(), VIP.into());
    let tcp = Tcp::new(4000, 80);
    head.tcp(if begins { tcp.syn() } else { tcp.flags(flags::ACK) }).build()
}

/// How often roads ended so, since the maps were filled.
fn count(kernel: &Kernel, reason: Reason) -> Result<u64> {
    Ok(kernel.maps.counters()?.reasons[reason as usize])
}

fn pin(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu).with_context(|| format!("no CPU has number {cpu}"))?;
    sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("cannot run on CPU {cpu}"))
}

fn messages() -> Result<()> {
    let network = Network::new()?;
    // A thread of its own, which stays where it is.
    let run = || -> Result<()> {
        network.namespace().run(|| {
            pin(0)?;
            let kernel = Kernel::load(ROOM)?;
            let mut tables = tables(&network, false, Guard::default());
            // The next one is more than four seconds away.
            tables.settings.message_interval = u32::MAX;
            kernel.fill(&tables, &network.egress())?;
            let syn = segment(&network, 0xc633_6401, true);
            for _ in 0..60 {
                kernel.run(&syn, network.port())?;
            }
            let (sent, kept) = (count(&kernel, Reason::Reset)?, count(&kernel, Reason::ResetSuppressed)?);
            ensure!((sent, kept) == (50, 10), "{sent} RSTs, {kept} were kept");

            let own = Mac(network.devices()[0].mac);
            let mut echo = Frame::ethernet(STATION, own)
                .ip([198, 51, 100, 1].into(), VIP.into())
                .payload(&[8, 0, 0, 0, 0, 7, 0, 1])
                .build();
            echo[23] = 1;
            for _ in 0..60 {
                kernel.run(&echo, network.port())?;
            }
            let (asked, kept) =
                (count(&kernel, Reason::OtherProtocol)?, count(&kernel, Reason::EchoSuppressed)?);
            ensure!((asked, kept) == (50, 10), "{asked} echo requests, {kept} were kept");
            Ok(())
        })
    };
    thread::scope(|scope| scope.spawn(run).join().expect("it does not panic"))
}

fn rates() -> Result<()> {
    const A_SECOND: u32 = 20_000;
    const BURST: u32 = 500;
    let network = Network::new()?;
    let kernel = network.namespace().run(|| Kernel::load(ROOM))?;
    let rate = Rate::per_second(A_SECOND, BURST);
    for (what, guard, begins, reason) in [
        (
            "new connections of a source",
            Guard { source_connections: rate, ..Guard::default() },
            true,
            Reason::SourceConnections,
        ),
        (
            "packets of a source",
            Guard { source_packets: rate, ..Guard::default() },
            false,
            Reason::SourcePackets,
        ),
        (
            "new connections of the service",
            Guard { connections: rate, ..Guard::default() },
            true,
            Reason::ServiceConnections,
        ),
        (
            "packets of the service",
            Guard { packets: rate, ..Guard::default() },
            false,
            Reason::ServicePackets,
        ),
    ] {
        network.namespace().run(|| kernel.fill(&tables(&network, true, guard), &network.egress()))?;
        let frame = segment(&network, 0xc633_6401, begins);
        let began = Instant::now();
        // Returns how long it really ran: whoever is held up sends nothing, and what a full bucket gets meanwhile is lost.
        let flood = |cpu| -> Result<Duration> {
            network.namespace().run(|| {
                pin(cpu)?;
                while began.elapsed() < Duration::from_millis(500) {
                    TestRun::new(kernel.program(), &frame)
                        .arriving_on(network.port(), 0)
                        .repeat(20_000)
                        .run()?;
                }
                Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.into())
            })
        };
        let cpus = thread::available_parallelism()?.get();
        let busy = thread::scope(|scope| -> Result<Duration> {
            let threads: Vec<_> = (0..cpus).map(|cpu| scope.spawn(move || flood(cpu))).collect();
            threads.into_iter().try_fold(Duration::ZERO, |busy, thread| {
                Ok(busy.max(thread.join().expect("it does not panic")?))
            })
        })?;
        let least = f64::from(A_SECOND) * busy.as_secs_f64() * 0.5;
        let most = f64::from(BURST) + f64::from(A_SECOND) * began.elapsed().as_secs_f64();
        let (through, kept) = (count(&kernel, Reason::Forwarded)?, count(&kernel, reason)?);
        println!("{what}: {through} let through in {:?}, {kept} kept away", began.elapsed());
        // Each CPU may let one through that others have been faster with four times.
        ensure!(through as f64 <= most * 1.01, "{what}: {through} got through, at most {most}");
        ensure!(through as f64 >= least && kept > through, "{what}: {through} got through, at least {least}");
    }
    Ok(())
}

fn sources() -> Result<()> {
    const FEW: u32 = 1024;
    let network = Network::new()?;
    network.namespace().run(|| {
        let kernel = Kernel::load(lb_userspace::dataplane::Capacities { sources: FEW, ..ROOM })?;
        let once = Rate { interval: 1 << 62, tolerance: 0 };
        let tables = tables(&network, true, Guard { source_connections: once, ..Guard::default() });
        kernel.fill(&tables, &network.egress())?;
        for n in 0..10 * FEW {
            kernel.run(&segment(&network, 0x0a80_0000 + n, true), network.port())?;
        }
        let known = kernel.maps.sources.entries()?.len();
        ensure!(known <= FEW as usize, "{known} sources in room for {FEW}");
        ensure!(count(&kernel, Reason::Forwarded)? == u64::from(10 * FEW), "each was there once");
        // Who was there last is remembered.
        let last = segment(&network, 0x0a80_0000 + 10 * FEW - 1, true);
        kernel.run(&last, network.port())?;
        ensure!(count(&kernel, Reason::SourceConnections)? == 1);
        Ok(())
    })
}
