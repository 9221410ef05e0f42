//! `BPF_PROG_TEST_RUN`: an XDP program on a crafted frame, and the traffic generator that it makes.
//!
//! Interface numbers mean those of the caller's network namespace: wrap calls that use them into
//! [`Namespace::run`](crate::Namespace::run).

use std::{io, os::fd::AsRawFd as _, os::fd::BorrowedFd, time::Duration};

use anyhow::{Context as _, Result};

use crate::bpf::{Command, address_of, call};

/// What an XDP program wants done with a frame (`enum xdp_action`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// The program failed; the frame is dropped.
    Aborted,
    /// Dropped.
    Drop,
    /// Up to the kernel.
    Pass,
    /// Out where it came in.
    Transmit,
    /// Out elsewhere.
    Redirect,
    /// A number that is no action, which the kernel treats as aborted.
    Unknown(u32),
}

impl From<u32> for Action {
    fn from(number: u32) -> Self {
        match number {
            0 => Self::Aborted,
            1 => Self::Drop,
            2 => Self::Pass,
            3 => Self::Transmit,
            4 => Self::Redirect,
            other => Self::Unknown(other),
        }
    }
}

/// A run to be made. `repeat` feeds the changed frame back, so a program that encapsulates runs
/// out of room: restore the frame by a driver program where that matters.
#[derive(Clone, Copy, Debug)]
pub struct TestRun<'a> {
    program: BorrowedFd<'a>,
    frame: &'a [u8],
    repeat: u32,
    arrival: Option<Arrival>,
}

/// Where a frame is said to have come in.
#[derive(Clone, Copy, Debug)]
struct Arrival {
    interface: u32,
    queue: u32,
}

/// What a run gave.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What the last repetition returned.
    pub action: Action,
    /// The frame as the last repetition left it.
    pub frame: Vec<u8>,
    /// The mean of all repetitions. The kernel counts whole nanoseconds.
    pub duration: Duration,
}

impl<'a> TestRun<'a> {
    /// One run of `program` on `frame`, said to have come in on the loopback.
    #[must_use]
    pub fn new(program: BorrowedFd<'a>, frame: &'a [u8]) -> Self {
        Self { program, frame, repeat: 1, arrival: None }
    }

    /// Runs it so many times.
    #[must_use]
    pub fn repeat(self, repeat: u32) -> Self {
        Self { repeat, ..self }
    }

    /// Says that the frame came in on that interface and queue. The kernel refuses interfaces
    /// whose driver has not registered its queues; veth does so when a program is attached.
    #[must_use]
    pub fn arriving_on(self, interface: u32, queue: u32) -> Self {
        Self { arrival: Some(Arrival { interface, queue }), ..self }
    }

    /// Runs it.
    ///
    /// # Errors
    /// What the kernel says: `EINVAL` for frames below 14 bytes, or above a page if the program
    /// was not loaded for fragments.
    pub fn run(self) -> Result<Outcome> {
        // Encapsulation adds at most 256 bytes, the headroom that XDP gives.
        let mut output = vec![0_u8; self.frame.len() + 256];
        let context = self.arrival.map(|arrival| Context::new(arrival, self.frame));
        let mut attribute = TestRunAttribute {
            data_size_out: size(&output)?,
            data_out: output.as_mut_ptr().expose_provenance() as u64,
            repeat: self.repeat,
            ..TestRunAttribute::new(self.program, self.frame, context.as_slice())?
        };
        retry(&mut attribute).context("the test run failed")?;
        output.truncate(attribute.data_size_out as usize);
        Ok(Outcome {
            action: attribute.retval.into(),
            frame: output,
            duration: Duration::from_nanos(attribute.duration.into()),
        })
    }
}

/// Frames that really leave: each copy of `frame` is given to the program, and transmitted,
/// redirected or passed up as it says.
#[derive(Clone, Copy, Debug)]
pub struct LiveFrames<'a> {
    program: BorrowedFd<'a>,
    frame: &'a [u8],
    count: u32,
    batch: u32,
    arrival: Option<Arrival>,
}

impl<'a> LiveFrames<'a> {
    /// `count` copies of `frame`, in batches of 64.
    #[must_use]
    pub fn new(program: BorrowedFd<'a>, frame: &'a [u8], count: u32) -> Self {
        Self { program, frame, count, batch: 64, arrival: None }
    }

    /// So many at a time, at most 256.
    #[must_use]
    pub fn batch(self, batch: u32) -> Self {
        Self { batch, ..self }
    }

    /// Says where the frames came in: `XDP_TX` sends them out there.
    #[must_use]
    pub fn arriving_on(self, interface: u32, queue: u32) -> Self {
        Self { arrival: Some(Arrival { interface, queue }), ..self }
    }

    /// Sends them all, and returns when the last has been handed over. What a receiver is too
    /// slow for is dropped on the way.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn send(self) -> Result<()> {
        const LIVE_FRAMES: u32 = 1 << 1;
        let context = self.arrival.map(|arrival| Context::new(arrival, self.frame));
        let mut attribute = TestRunAttribute {
            repeat: self.count,
            flags: LIVE_FRAMES,
            batch_size: self.batch,
            ..TestRunAttribute::new(self.program, self.frame, context.as_slice())?
        };
        retry(&mut attribute).context("the live test run failed")
    }
}

fn retry(attribute: &mut TestRunAttribute) -> io::Result<()> {
    loop {
        // SAFETY: frame, output and context outlive the call, and have the sizes stated.
        match unsafe { call(Command::TestRun, attribute) } {
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn size(bytes: &[u8]) -> Result<u32> {
    u32::try_from(bytes.len()).context("no frame is that long")
}

/// The `test` member of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct TestRunAttribute {
    program: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_size_in: u32,
    context_size_out: u32,
    context_in: u64,
    context_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    /// The kernel wants zeroes after `batch_size`, so this may not be left as padding.
    zero: u32,
}
const _: () = assert!(size_of::<TestRunAttribute>() == 80);

impl TestRunAttribute {
    fn new(program: BorrowedFd<'_>, frame: &[u8], context: &[Context]) -> Result<Self> {
        Ok(Self {
            program: program.as_raw_fd().cast_unsigned(),
            data_size_in: size(frame)?,
            data_in: address_of(frame),
            context_size_in: u32::try_from(size_of_val(context))?,
            context_in: address_of(context),
            ..Self::default()
        })
    }
}

/// `struct xdp_md`, where `data` and `data_end` are offsets.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Context {
    data: u32,
    data_end: u32,
    data_meta: u32,
    interface: u32,
    queue: u32,
    egress_interface: u32,
}
const _: () = assert!(size_of::<Context>() == 24);

impl Context {
    fn new(arrival: Arrival, frame: &[u8]) -> Self {
        Self {
            // A frame too long for 32 bits is refused when the attribute is made.
            data_end: u32::try_from(frame.len()).unwrap_or(u32::MAX),
            interface: arrival.interface,
            queue: arrival.queue,
            ..Self::default()
        }
    }
}
