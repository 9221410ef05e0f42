//! How long it takes from the packet that shows a canary to be bad to the end of the canary.

use std::mem::offset_of;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Result, ensure};
use lb_common::abi::{Mode, Service, Split};
use lb_common::host::{ServiceSpec, Tables};
use lb_common::measure::Measure;
use lb_common::verdict::Event;
use lb_tests::packets::{Frame, Tcp};
use lb_tests::test_run::Action;
use lb_tests::{Mac, claim};
use libtest_mimic::Trial;

use crate::kernel::{Kernel, ROOM};
use crate::network::Network;

pub fn claims() -> Vec<Trial> {
    vec![claim(
        "the packet that crosses the tripwire ends the canary itself, within 100 microseconds",
        tripwire,
    )]
}

const VIP: [u8; 4] = [203, 0, 113, 10];
const CLIENT: [u8; 4] = [198, 51, 100, 200];
const MEASURE: u16 = 1;
/// Whoever else runs on the machine may get in the way of one run, and not of all.
const RUNS: u16 = 20;

fn tripwire() -> Result<()> {
    let network = Network::new()?;
    let mut tables = Tables::new();
    tables.devices = network.devices().to_vec();
    let vip: IpAddr = VIP.into();
    let index = tables.add_service(&ServiceSpec::tcp(vip, 80, Mode::DsrL2));
    tables.add_pool(index, false, &[(SocketAddr::from(([10, 1, 0, 11], 80)), 1)]);
    tables.add_pool(index, true, &[(SocketAddr::from(([10, 1, 0, 12], 80)), 1)]);
    let service = &mut tables.services[index as usize];
    service.flags |= Service::MEASURED;
    service.measure = MEASURE;
    let (port, egress) = (network.port(), network.egress());
    network.namespace().run(move || -> Result<()> {
        let kernel = Kernel::load(ROOM)?;
        let word = |offset: usize| kernel.maps.measures.word(MEASURE.into(), offset);
        let mut took = Vec::new();
        for run in 0..RUNS {
            tables.services[index as usize].split = Split::of(Split::ALL, 0).0;
            tables.services[index as usize].split_home = Split::ALL.into();
            kernel.fill(&tables, &egress)?;
            for word in kernel.maps.measures.words(MEASURE.into()) {
                word.store(0, Ordering::Release);
            }
            // The second client that fares badly is one too many.
            word(offset_of!(Measure, trip_start)).store(2 << 16, Ordering::Release);
            let syn = |client: u8| {
                let [a, b, c, _] = CLIENT;
                let frame = Frame::ethernet(Mac([2; 6]), Mac([3; 6])).ip([a, b, c, client].into(), vip);
                kernel.run(&frame.tcp(Tcp::new(1_024 + run, 80).syn()).build(), port)
            };
            // In `dsr` a SYN that is sent again is all that is seen of a backend that does not answer.
            for client in [1, 1, 2] {
                ensure!(syn(client)?.action == Action::Transmit);
                // No client sends it again sooner than after a second.
                kernel.age_handshakes(Duration::from_secs(1))?;
            }
            let split = || kernel.maps.services.read(index).split();
            ensure!(split().new() == Split::ALL, "one client is not enough");
            let last = syn(2)?;
            ensure!(split().new() == 0, "the canary is open still: {:?}", split());
            ensure!(
                split().tracked() == Split::ALL
                    && word(offset_of!(Measure, tripped)).load(Ordering::Acquire) != 0
            );
            ensure!(kernel.maps.counters()?.events[Event::Tripped as usize] == 1);
            took.push(last.duration);
        }
        took.sort_unstable();
        println!(
            "from the packet to the store: at most {:?} at best, {:?} in the median",
            took[0],
            took[took.len() / 2]
        );
        ensure!(took[took.len() / 2] < Duration::from_micros(100), "{took:?}");
        Ok(())
    })
}
