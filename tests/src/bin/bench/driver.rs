//! The driver program: makes every packet new, tail-calls the program under test, and takes the time.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use aya::maps::{Array, PerCpuArray, PerCpuValues, ProgramArray};
use aya::programs::{ProgramFd, Xdp};
use aya::{Ebpf, EbpfLoader};
use lb_tests::Namespace;
use lb_tests::test_run::{Action, Outcome, TestRun};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

/// Bytes in a frame of the measurement.
pub const LENGTH: usize = 142;

/// What the driver makes packets from: `Template` of its source.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Template {
    /// The frame of flow 0.
    pub frame: [u8; LENGTH],
    /// Where the last 4 bytes of the client's address lie; the last 17 bits are 0 in `frame`.
    pub address: u16,
    /// Where the client's port lies; [`Template::FIRST_PORT`] in `frame`.
    pub port: u16,
    /// Zero.
    pub pad: u16,
    /// How many flows.
    pub flows: u32,
}

impl Template {
    /// The client's port in flow 0.
    pub const FIRST_PORT: u16 = 0x8000;
}

const _: () = assert!(size_of::<Template>() == 152, "as in the driver, without padding");

// SAFETY: integers without padding.
unsafe impl aya::Pod for Template {}

/// Programs that were made for frames in several buffers, and those that were not: a program array takes one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `xdp.frags`
    Frags,
    /// `xdp`
    Linear,
}

/// Measures programs on one CPU, on frames that arrive at one interface.
pub struct Driver {
    frags: Half,
    linear: Half,
    stand: Stand,
}

/// Where it is measured.
#[derive(Clone, Debug)]
pub struct Stand {
    /// The namespace of the interface.
    pub namespace: Namespace,
    /// The interface that frames are said to arrive at; a program has to be attached to it.
    pub interface: u32,
    /// The CPU.
    pub cpu: usize,
}

struct Half {
    object: Ebpf,
    driver: ProgramFd,
    floor: ProgramFd,
}

impl Driver {
    /// Loads the driver.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn load(stand: Stand) -> Result<Self> {
        Ok(Self {
            frags: Half::load("driver", "floor")?,
            linear: Half::load("driver_linear", "floor_linear")?,
            stand,
        })
    }

    /// A program of the driver's object that only makes room for an outer header.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn grow(&mut self) -> Result<ProgramFd> {
        load(&mut self.frags.object, "grow")
    }

    /// The kind of a program, found out by trying.
    ///
    /// # Errors
    /// If it cannot be tail-called by either driver.
    pub fn kind(&mut self, program: &ProgramFd) -> Result<Kind> {
        let Err(first) = self.half(Kind::Frags).aim(program) else { return Ok(Kind::Frags) };
        match self.half(Kind::Linear).aim(program) {
            Ok(()) => Ok(Kind::Linear),
            Err(second) => bail!("no driver can tail-call it (frags: {first:#}; linear: {second:#})"),
        }
    }

    /// Says what the packets are.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn set(&mut self, template: &Template) -> Result<()> {
        for half in [&mut self.frags, &mut self.linear] {
            let map = half.object.map_mut("TEMPLATE").context("the driver has no TEMPLATE")?;
            Array::<_, Template>::try_from(map)?.set(0, template, 0)?;
        }
        Ok(())
    }

    /// The mean time of a packet, driver included, from flow 0 on; and what the last one came to.
    ///
    /// # Errors
    /// If the kernel refuses, or the driver could not restore a packet.
    pub fn run(&mut self, program: &ProgramFd, kind: Kind, frame: &[u8], packets: u32) -> Result<Outcome> {
        self.half(kind).aim(program)?;
        self.run_aimed(kind, frame, packets)
    }

    /// The same with an empty program: what is to be subtracted.
    ///
    /// # Errors
    /// As [`Driver::run`].
    pub fn floor(&mut self, kind: Kind, frame: &[u8], packets: u32) -> Result<Duration> {
        let half = self.half(kind);
        let floor = half.floor.try_clone()?;
        half.aim(&floor)?;
        let outcome = self.run_aimed(kind, frame, packets)?;
        Ok(outcome.duration)
    }

    fn run_aimed(&mut self, kind: Kind, frame: &[u8], packets: u32) -> Result<Outcome> {
        let Stand { namespace, interface, cpu } = self.stand.clone();
        let half = self.half(kind);
        half.rewind()?;
        let run = TestRun::new(std::os::fd::AsFd::as_fd(&half.driver), frame)
            .repeat(packets)
            .arriving_on(interface, 0);
        let outcome = namespace.run(|| {
            pin(cpu)?;
            run.run()
        })?;
        if outcome.action == Action::Aborted {
            bail!("the driver cannot restore a packet, or the program was aborted");
        }
        Ok(outcome)
    }

    fn half(&mut self, kind: Kind) -> &mut Half {
        match kind {
            Kind::Frags => &mut self.frags,
            Kind::Linear => &mut self.linear,
        }
    }
}

impl Half {
    fn load(driver: &str, floor: &str) -> Result<Self> {
        static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("LB_DRIVER_OBJECT"));
        let mut object = EbpfLoader::new().load(OBJECT).context("cannot load the driver's object")?;
        let (driver, floor) = (load(&mut object, driver)?, load(&mut object, floor)?);
        Ok(Self { object, driver, floor })
    }

    fn aim(&mut self, program: &ProgramFd) -> Result<()> {
        let map = self.object.map_mut("TARGET").context("the driver has no TARGET")?;
        Ok(ProgramArray::try_from(map)?.set(0, program, 0)?)
    }

    /// The next packet is flow 0's.
    fn rewind(&mut self) -> Result<()> {
        let cpus = aya::util::nr_cpus().map_err(|(what, error)| anyhow::anyhow!("{what}: {error}"))?;
        let map = self.object.map_mut("NEXT").context("the driver has no NEXT")?;
        let zeros = PerCpuValues::try_from(vec![0_u32; cpus])?;
        Ok(PerCpuArray::<_, u32>::try_from(map)?.set(0, zeros, 0)?)
    }
}

fn load(object: &mut Ebpf, name: &str) -> Result<ProgramFd> {
    let program: &mut Xdp =
        object.program_mut(name).with_context(|| format!("the driver has no {name}"))?.try_into()?;
    program.load().with_context(|| format!("the kernel refuses {name}"))?;
    Ok(program.fd()?.try_clone()?)
}

/// Keeps this thread on one CPU.
///
/// # Errors
/// If there is no such CPU.
pub fn pin(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu).with_context(|| format!("no CPU has number {cpu}"))?;
    sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("cannot run on CPU {cpu}"))
}
