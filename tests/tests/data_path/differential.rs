//! The kernel runs the same decision as the host: on a million frames, most of them broken somewhere.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use std::{env, thread};

use anyhow::{Context as _, Result, bail, ensure};
use lb_common::abi;
use lb_common::host::{self, Tables};
use lb_common::pipeline::process;
use lb_common::verdict::{self, Event, Reason, Verdict};
use lb_common::vlan::hand_up;
use lb_tests::claim;
use lb_tests::packets::hex;
use lb_tests::test_run::Action;
use lb_userspace::clock;
use libtest_mimic::Trial;
use nix::time::{ClockId, clock_gettime};

use crate::frames::Frames;
use crate::kernel::{Charged, Kernel, ROOM, State};
use crate::network::{LOOPBACK, Network};
use crate::rng::Rng;
use crate::tables;

/// At least so many frames, unless `LB_FRAMES` says otherwise.
const FRAMES: u64 = 1_000_000;
/// Frames from one set of tables: too few to fill any of them, for the kernel forgets others than the host does.
const STAGE: u64 = 10_000;

pub fn claims() -> Vec<Trial> {
    vec![claim("kernel and host agree on a million frames: verdict, counters, bytes and tables", agree)]
}

fn agree() -> Result<()> {
    let seed = number("LB_SEED")?.unwrap_or(SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos() as u64);
    let frames = number("LB_FRAMES")?.unwrap_or(FRAMES);
    println!("seed {seed} (LB_SEED={seed} repeats this run)");
    let network = Network::new()?;
    let started = Instant::now();
    let next = AtomicU64::new(0);
    let reached = Mutex::new(BTreeMap::<&str, u64>::new());
    let happened = Mutex::new([0_u64; Event::COUNT]);
    let workers = thread::available_parallelism()?.get();
    let run = || -> Result<()> {
        // By stages, each from a seed of its own: the number of CPUs does not matter.
        network.namespace().run(|| {
            let kernel = Kernel::load(ROOM)?;
            while let Some(number) = Some(next.fetch_add(1, Ordering::Relaxed)).filter(|n| n * STAGE < frames)
            {
                let rng = Rng::new(seed.wrapping_add(number));
                let (charged, events) = stage(&kernel, &network, &rng, frames.min(STAGE))
                    .with_context(|| format!("stage {number} of seed {seed}"))?;
                let mut reached = reached.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                for (reason, count) in charged.reasons() {
                    *reached.entry(reason.name()).or_default() += count;
                }
                let mut happened = happened.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                happened.iter_mut().zip(events).for_each(|(sum, count)| *sum += count);
            }
            Ok(())
        })
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..workers).map(|_| scope.spawn(run)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("a worker does not panic"))
    })?;
    let reached = reached.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    println!("{} frames in {:.1?}: {reached:?}", reached.values().sum::<u64>(), started.elapsed());
    if frames < FRAMES {
        // Too few to meet everything.
        return Ok(());
    }
    // Those that no frame can bring about here: a table is missing, a driver leaves no room; a reply that fits a SYN before it.
    // (How many messages there were already, each CPU knows for itself: `messages`.)
    let never = [
        Reason::NoTable,
        Reason::NoHeadroom,
        Reason::RefusalKept,
        Reason::Superseded,
        Reason::ResetSuppressed,
        Reason::EchoSuppressed,
    ];
    for reason in Reason::ALL.iter().filter(|reason| !never.contains(reason)) {
        let count = reached.get(reason.name()).copied().unwrap_or_default();
        ensure!(count >= frames / 20_000, "only {count} frames were {}: {reached:?}", reason.name());
    }
    let happened = happened.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    for event in [Event::QuicById, Event::QuicOpening, Event::QuicUnknown, Event::QuicVoid] {
        let count = happened[event as usize];
        ensure!(count >= frames / 20_000, "{} happened {count} times only", event.name());
    }
    Ok(())
}

/// An environment variable that is a number.
fn number(name: &str) -> Result<Option<u64>> {
    match env::var(name) {
        Ok(text) => text.parse().map(Some).with_context(|| format!("{name} is a number, not {text:?}")),
        Err(_) => Ok(None),
    }
}

/// Sends frames through both, from tables that are the same at first and must be at the end; anew, if a tick went by while a frame was
/// between the two: they would not be the same to one who counts ticks.
fn stage(
    kernel: &Kernel,
    network: &Network,
    rng: &Rng,
    frames: u64,
) -> Result<(Charged, [u64; Event::COUNT])> {
    for _ in 0..20 {
        if let Some(done) = try_stage(kernel, network, rng.clone(), frames)? {
            return Ok(done);
        }
    }
    bail!("twenty times this thread was held up for so long that a tick went by")
}

/// `None`: a tick went by.
fn try_stage(
    kernel: &Kernel,
    network: &Network,
    mut rng: Rng,
    frames_of_it: u64,
) -> Result<Option<(Charged, [u64; Event::COUNT])>> {
    let mut tables = tables::make(network, &mut rng);
    kernel.fill(&tables, &network.egress())?;
    let mut frames = Frames::new(network);
    let mut charged = Charged::default();
    for number in 0..frames_of_it {
        let frame = frames.next(&tables, &mut rng);
        let arrival = rng.pick(&[network.port(), LOOPBACK]);
        let in_a_tick = compare(kernel, network, &mut tables, &mut charged, &frame, arrival)
            .with_context(|| format!("frame {number} by interface {arrival}: {}", hex(&frame)))?;
        if !in_a_tick {
            return Ok(None);
        }
    }
    let slots = kernel.maps.slots.len() as usize;
    let difference = kernel.state()?.difference(&State::of(&tables, &charged, slots));
    ensure!(difference.is_none(), "kernel and host have other tables: {}", difference.unwrap_or_default());
    let events = charged.counters(&tables).events;
    Ok(Some((charged, events)))
}

/// `false`: a tick went by before the kernel had the frame.
fn compare(
    kernel: &Kernel,
    network: &Network,
    tables: &mut Tables,
    charged: &mut Charged,
    bytes: &[u8],
    arrival: u32,
) -> Result<bool> {
    let mut frame = host::Frame::new(bytes, arrival);
    // The kernel reads two clocks after we do, of which the coarse one is some milliseconds late.
    while clock::ticks() != abi::ticks(exactly()? + AHEAD) {
        std::hint::spin_loop();
    }
    tables.clock.set(exactly()?);
    let verdict = process(&mut frame, tables);
    charged.add(&verdict);

    let outcome = kernel.run(bytes, arrival)?;
    if abi::ticks(exactly()?) != abi::ticks(tables.clock.get()) {
        return Ok(false);
    }
    let expected = action(network, &verdict, arrival).unwrap_or_else(|| {
        hand_up(&mut frame, tables, verdict.reason).map_or_else(
            |reason| {
                charged.add(&Verdict::of(reason));
                Action::Drop
            },
            |()| Action::Pass,
        )
    });
    ensure!(
        outcome.action == expected,
        "the kernel says {:?}, the host {expected:?} ({verdict:?})",
        outcome.action
    );
    let (is, should) = (kernel.counters(&[network.port(), LOOPBACK])?, charged.counters(tables));
    ensure!(is == should, "other counters, at {verdict:?}:\n{is:?}\n{should:?}");
    ensure!(
        outcome.frame == frame.bytes(),
        "other bytes, at {verdict:?}:\n{}\n{}",
        hex(&outcome.frame),
        hex(frame.bytes())
    );
    Ok(true)
}

/// What a frame may take, in nanoseconds: none is begun when a tick ends sooner.
const AHEAD: u64 = 1_000_000;

/// Monotonic nanoseconds, as `bpf_ktime_get_ns` gives them.
fn exactly() -> Result<u64> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
    Ok(Duration::from(now).as_nanos() as u64)
}

/// What the program returns for a verdict; `None`: the frame cannot leave by its interface.
fn action(network: &Network, verdict: &Verdict, arrival: u32) -> Option<Action> {
    Some(match verdict.reason.action() {
        verdict::Action::Pass => Action::Pass,
        verdict::Action::Drop => Action::Drop,
        verdict::Action::Transmit if verdict.ifindex == arrival => Action::Transmit,
        verdict::Action::Transmit if network.egress().contains(&verdict.ifindex) => Action::Redirect,
        verdict::Action::Transmit => return None,
    })
}
