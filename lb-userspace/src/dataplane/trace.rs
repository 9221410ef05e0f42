//! The program of those who trace: the same one with a look at every packet, in the place of the other one for as long as
//! somebody asks.
//!
//! It is the same object with one constant changed, so that whoever does not trace has none of it: the verifier cuts it out.
//! Links get it, and the other one again, by the same atomic update that a new version is brought in by. Nothing of it
//! is pinned but the array of its stages, as for any program: an agent that dies in the midst of it leaves a program that
//! forwards and, once the time that was asked for is over, tells nobody anything; the next agent replaces it as always.

use std::path::{Path, PathBuf};
use std::time::Duration;

use aya::Ebpf;
use aya::maps::{Array, Map, MapData, RingBuf};
use aya::programs::Xdp;
use aya_obj::programs::XdpAttachType;
use lb_common::trace::Filter;
use tracing::warn;

use super::load::{
    Attached, LoadError, Options, PROGRAM, is_gone, load_object, load_programs, pin_stages, refused, swap,
    xdp,
};
use super::maps;
use crate::clock;

/// Room for what is told and not yet read, in bytes.
const RING: u32 = 4 << 20;
const FILTER_BYTES: usize = size_of::<Filter>();

/// The program that traces, while it is in the place of the other one.
pub struct Traced {
    directory: PathBuf,
    attached: Vec<Attached>,
    stages: PathBuf,
    /// Its programs and maps live by it.
    _object: Ebpf,
}

/// The program that traces, loaded and in nobody's place yet.
pub struct Tracer {
    directory: PathBuf,
    object: Ebpf,
}

/// Loads the program that traces, which takes seconds where the verifier is slow.
///
/// # Errors
///
/// As [`load`](super::load).
pub fn prepare(options: &Options) -> Result<Tracer, LoadError> {
    let directory = maps::directory(&options.pin_dir);
    let mut object = load_object(options, &directory, Some(RING), &[])?;
    load_programs(&mut object)?;
    Ok(Tracer { directory, object })
}

impl Tracer {
    /// Puts it in the place of the other one. Returns with it the ring that it tells packets by: of those that come from
    /// then on, for so long.
    ///
    /// # Errors
    ///
    /// As [`load`](super::load). The other program is in its place again then.
    pub fn begin(
        self,
        attached: &[Attached],
        filter: Filter,
        lasts: Duration,
    ) -> Result<(Traced, RingBuf<MapData>), LoadError> {
        let Self { directory, mut object } = self;
        let Some(Map::RingBuf(ring)) = object.take_map("TRACED") else { return Err(missing()) };
        let ring = RingBuf::try_from(Map::RingBuf(ring)).map_err(aya::EbpfError::from)?;
        let stages = pin_stages(&mut object, &directory)?;
        // From here on dropping it puts the other one back.
        let mut traced =
            Traced { directory: directory.clone(), attached: attached.to_vec(), stages, _object: object };
        let program = xdp(&mut traced._object, PROGRAM)?;
        for interface in attached {
            swap(program, interface, &directory)?;
        }
        // The time begins once it is there; until now it told nobody anything.
        let until = clock::nanoseconds() + lasts.as_nanos() as u64;
        let filters = traced._object.map_mut("TRACE_FILTER").ok_or_else(missing)?;
        let mut filters = Array::<_, [u8; FILTER_BYTES]>::try_from(filters).map_err(aya::EbpfError::from)?;
        let filter = bytemuck::cast::<Filter, [u8; FILTER_BYTES]>(Filter { until, ..filter });
        filters.set(0, filter, 0).map_err(aya::EbpfError::from)?;
        Ok((traced, ring))
    }
}

fn missing() -> LoadError {
    aya::programs::ProgramError::UnexpectedProgramType.into()
}

impl Drop for Traced {
    fn drop(&mut self) {
        if let Err(error) = restore(&self.directory, &self.attached) {
            warn!("the program that traces stays in its place until lbd is started again: {error}");
            return;
        }
        if let Err(error) = std::fs::remove_file(&self.stages) {
            warn!(pin = %self.stages.display(), "cannot remove the pin of the program that traced: {error}");
        }
    }
}

fn restore(directory: &Path, attached: &[Attached]) -> Result<(), LoadError> {
    let mut program = Xdp::from_pin(directory.join(PROGRAM), XdpAttachType::Interface)
        .map_err(|error| refused(error, "open the pinned program"))?;
    let mut last = Ok(());
    for interface in attached {
        // One that is gone took its link with it. Whatever comes of one, the others go on.
        if let Err(error) = swap(&mut program, interface, directory)
            && !is_gone(directory, interface)
        {
            last = Err(error);
        }
    }
    last
}
