//! Brings the programs and their maps into the kernel, or adopts those that are there.
//!
//! Everything lives by its pin: the agent may die at any point, and the next one goes on from what it finds. A map that is
//! pinned is used as it is. The programs are always loaded anew, and a link that is pinned gets the first of them by one
//! atomic update, so that no packet sees the interface without a program.
//!
//! The first program jumps to the others through the array `STAGES`, and each loading has one of its own: the update of the
//! link replaces all of them as one, and no packet goes from a program of one version to one of another. The kernel empties
//! such an array when its last descriptor and its last pin are gone, whatever programs still use it. So it is pinned before
//! a link gets its program, under a name with its number (`STAGES-17`), and that of the version before stays until no link
//! needs it.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use aya::maps::{Map, ProgramArray};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::{XdpLink, XdpMode};
use aya::programs::{ProgramError, Xdp};
use aya::{Ebpf, EbpfError, EbpfLoader};
use aya_obj::programs::XdpAttachType;
use lb_common::abi::LAYOUT;
use lb_common::quic::MAX_CONFIG;
use lb_common::stage::Stage;
use thiserror::Error;
use tracing::{info, warn};

use super::maps::{self, Maps};
use super::migrate::{self, Move};
use super::{bpf, kernel};

/// The kernel programs.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("LB_EBPF_OBJECT"));

/// The name of the first program, and of its pin.
pub const PROGRAM: &str = "lb";

/// The name of the array of the others. (Not one of [`maps::NAMES`]: it belongs to the programs, and is made with them.)
const STAGES: &str = "STAGES";

/// The global that switches logging in the kernel program on. At 0 the verifier cuts every log statement out.
const LOG_LEVEL: &str = "AYA_LOG_LEVEL";
/// Likewise for what is told to those who trace.
const TRACE: &str = "LB_TRACE";

/// Configurations that connection ids can have.
const QUIC_CONFIGS: u32 = MAX_CONFIG as u32 + 1;

/// What to load, and where to.
#[derive(Clone, Debug)]
pub struct Options {
    /// Directory of pins, without the layout.
    pub pin_dir: PathBuf,
    /// Interfaces by name.
    pub interfaces: Vec<String>,
    /// `None`: native where the driver can, else generic.
    pub mode: Option<Native>,
    /// Room in the tables, for maps that are made anew.
    pub capacities: Capacities,
    /// 0: the kernel program has no log statements; 1 to 5: from errors to everything (`aya_log`).
    pub log_level: u8,
}

/// Room in the tables, in entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacities {
    /// `FLOWS`.
    pub flows: u32,
    /// `UDP_FLOWS`.
    pub udp_flows: u32,
    /// `HALF_OPEN`.
    pub half_open: u32,
    /// `SESSIONS`, in sessions.
    pub sessions: u32,
    /// `SLOTS`.
    pub slots: u32,
    /// `BACKENDS`.
    pub backends: u32,
    /// `SERVICES`.
    pub services: u32,
    /// `RULES`.
    pub prefixes: u32,
    /// `SOURCES`.
    pub sources: u32,
}

/// Where on an interface's receive path the program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Native {
    /// In the driver.
    Native,
    /// After the kernel has made a buffer of the frame: correct, and several times slower.
    Generic,
}

impl Native {
    /// Its name in the configuration and in pins.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }

    const fn flag(self) -> XdpMode {
        match self {
            Self::Native => XdpMode::Driver,
            Self::Generic => XdpMode::Skb,
        }
    }
}

/// The program on an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// The interface.
    pub name: String,
    /// Its index.
    pub ifindex: u32,
    /// Where the program runs.
    pub mode: Native,
    /// Whether a link of an earlier agent was taken over.
    pub adopted: bool,
}

/// What is in the kernel now.
pub struct Loaded {
    /// The maps.
    pub maps: Maps,
    /// The interfaces.
    pub attached: Vec<Attached>,
    /// Whether the maps were there before.
    pub adopted: bool,
    /// The first program's number in the kernel.
    pub program_id: u32,
    /// Instructions of the first program that the verifier went through, where the kernel says so.
    pub verified_instructions: Option<u32>,
    /// Whether the program is machine code; the kernel interprets it otherwise.
    pub jited: bool,
    /// For its log, if asked for.
    pub object: Ebpf,
}

/// Why the data path is not in the kernel.
#[derive(Debug, Error)]
pub enum LoadError {
    /// An old kernel.
    #[error(
        "this kernel is {found}, but the data path needs Linux {}.{} or newer; boot a newer one (Debian 12 has 6.1)",
        kernel::OLDEST.0, kernel::OLDEST.1
    )]
    Kernel {
        /// What `uname` says.
        found: String,
    },
    /// The verifier has no types to go by.
    #[error(
        "cannot load the program: this kernel shows no types of its own (there is no /sys/kernel/btf/vmlinux), which its \
         verifier needs; use one that was built with CONFIG_DEBUG_INFO_BTF, as distributions build theirs. It says: {}",
        with_log(.0)
    )]
    NoBtf(ProgramError),
    /// No bpffs.
    #[error(
        "{} is not on a BPF file system, where programs and maps outlive the agent; mount one: mount -t bpf bpf /sys/fs/bpf{}",
        path.display(),
        if path.starts_with("/sys/fs/bpf") { " (`ip netns exec` hides it: use `nsenter --net=` instead)" } else { "" }
    )]
    NoBpffs {
        /// Where pins should go.
        path: PathBuf,
    },
    /// Not allowed.
    #[error(
        "not permitted to {what}: lbd needs CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN; run it as root or by its unit file"
    )]
    Permission {
        /// What was tried.
        what: String,
    },
    /// The interface is not there.
    #[error("there is no interface {name}; there are {present}")]
    NoInterface {
        /// As configured.
        name: String,
        /// Those that are.
        present: String,
    },
    /// Somebody else's program.
    #[error(
        "{name} has another XDP program already, which lb does not push aside; see `ip link show {name}`, and remove it if it is \
         not needed: that of another lb with its `lbctl detach --pin-dir`, others with `ip link set dev {name} xdp off`, or `bpftool link` \
         where a link holds them"
    )]
    Occupied {
        /// The interface.
        name: String,
    },
    /// The driver cannot.
    #[error(
        "the driver of {name} has no native XDP ({source}); set xdp_mode = \"auto\" or \"generic\" to run without it (of a VLAN \
         device, name the interface below: tags are taken care of)"
    )]
    NotNative {
        /// The interface.
        name: String,
        /// What the kernel says.
        source: io::Error,
    },
    /// Links that can be pinned do not work.
    #[error("{name}: the kernel attached the program without a link, which would not outlive the agent")]
    NoLink {
        /// The interface.
        name: String,
    },
    /// Attaching failed.
    #[error("cannot attach to {name}: {source}")]
    Attach {
        /// The interface.
        name: String,
        /// What the kernel says.
        source: ProgramError,
    },
    /// The verifier or the loader refused.
    #[error("cannot load the program: {}", with_log(.0))]
    Program(#[from] ProgramError),
    /// The object cannot be loaded.
    #[error("cannot load the object: {0}")]
    Object(#[from] EbpfError),
    /// Maps that another version has made.
    #[error(
        "the data path in {} is that of another version: layout {found} of the maps, where this version has {LAYOUT} and knows no way \
         from there; start the lbd that made it, or take it off with `lbctl detach` (connections that are not where their hash \
         leads are reset then)",
        path.display()
    )]
    Layout {
        /// The layout.
        found: u32,
        /// Where its maps are.
        path: PathBuf,
    },
    /// Maps that do not fit.
    #[error("{0}; if an earlier version left it behind, `lbctl detach` takes it away")]
    Maps(#[from] maps::OpenError),
    /// Pinning.
    #[error("cannot {what} {}: {source}", path.display())]
    Pin {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
}

/// The verifier's own words, which an error's `Display` leaves out.
fn with_log(error: &ProgramError) -> String {
    match error {
        ProgramError::LoadError { io_error, verifier_log } => format!("{io_error}\n{verifier_log}"),
        other => other.to_string(),
    }
}

/// Loads the program, and makes or adopts maps and links.
///
/// # Errors
///
/// Says what is in the way and how to clear it. What was there before stays as it was, except that a link may have got the
/// new program already; where nothing was, nothing is left.
pub fn load(options: &Options) -> Result<Loaded, LoadError> {
    kernel::check()?;
    options.interfaces.iter().try_for_each(|name| index_of(name).map(drop))?;
    let is_first = migrate::directories(&options.pin_dir).is_empty();
    load_or_adopt(options).inspect_err(|_| {
        if is_first && let Err(error) = detach(&options.pin_dir) {
            warn!("what was pinned cannot be removed: {error}");
        }
    })
}

fn load_or_adopt(options: &Options) -> Result<Loaded, LoadError> {
    let directory = maps::directory(&options.pin_dir);
    make_directory(&options.pin_dir)?;
    let moving = migrate::begin(&options.pin_dir)?;
    make_directory(&directory)?;
    let adopted = moving.is_some() || directory.join("SETTINGS").exists();

    let rooms = moving.as_ref().map(Move::rooms).unwrap_or_default();
    let mut object = load_object(options, &directory, None, &rooms)?;
    load_programs(&mut object)?;
    let stages = pin_stages(&mut object, &directory)?;
    let program = xdp(&mut object, PROGRAM)?;
    let info = program.info()?;
    let (program_id, verified_instructions) = (info.id(), info.verified_instruction_count());
    let jited = info.size_jitted() > 0;
    if !jited {
        warn!(
            "the kernel interprets BPF programs, which is several times slower: sysctl -w net.core.bpf_jit_enable=1"
        );
    }
    let maps = Maps::open(&directory)?;
    if let Some(moving) = moving {
        // Who finds a link that runs it knows by its pin that packets meet the new maps.
        pin_program(program, PROGRAM, &directory)?;
        moving.make(program)?;
    }

    let mut attached = Vec::new();
    for name in &options.interfaces {
        attached.push(attach(program, name, options.mode, &directory)?);
    }
    forget_other_links(&options.pin_dir, &attached);
    for name in programs() {
        pin_program(xdp(&mut object, name)?, name, &directory)?;
    }
    forget_other_stages(&directory, &stages);
    Ok(Loaded { maps, attached, adopted, program_id, verified_instructions, jited, object })
}

/// Attaches the program that is pinned to an interface that came while the agent runs. `mode` as in [`Options`].
///
/// # Errors
///
/// As [`load`].
pub fn attach_again(pin_dir: &Path, name: &str, mode: Option<Native>) -> Result<Attached, LoadError> {
    let directory = maps::directory(pin_dir);
    let mut program = Xdp::from_pin(directory.join(PROGRAM), XdpAttachType::Interface)
        .map_err(|error| refused(error, "open the pinned program"))?;
    attach(&mut program, name, mode, &directory)
}

fn make_directory(directory: &Path) -> Result<(), LoadError> {
    let existing = directory.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    if !is_bpffs(existing) {
        return Err(LoadError::NoBpffs { path: directory.to_owned() });
    }
    fs::create_dir_all(directory).map_err(|source| match source.kind() {
        io::ErrorKind::PermissionDenied => {
            LoadError::Permission { what: format!("create {}", directory.display()) }
        }
        _ => LoadError::Pin { what: "create", path: directory.to_owned(), source },
    })
}

/// Whether a path is on a BPF file system.
pub(crate) fn is_bpffs(path: &Path) -> bool {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else { return false };
    // SAFETY: an all-zero structure of integers is valid, and is filled in.
    unsafe {
        let mut stat: libc::statfs = std::mem::zeroed();
        // C libraries differ in the type of the field.
        libc::statfs(path.as_ptr(), &raw mut stat) == 0 && stat.f_type as i64 == libc::BPF_FS_MAGIC
    }
}

/// `traced`: the room for what is told of packets, in bytes, if something is. `rooms`: for maps that are not made as large as
/// the options say.
pub(super) fn load_object(
    options: &Options,
    directory: &Path,
    traced: Option<u32>,
    rooms: &[(&'static str, u32)],
) -> Result<Ebpf, LoadError> {
    let room = &options.capacities;
    let mut loader = EbpfLoader::new();
    loader
        // The kernel's types are for programs that look into it; ours do not, and they take 20 MB.
        .btf(None)
        .override_global(LOG_LEVEL, &options.log_level, true)
        .override_global(TRACE, if traced.is_some() { &1u8 } else { &0u8 }, true)
        .map_max_entries("TRACED", traced.unwrap_or(4096))
        .map_max_entries("FLOWS", room.flows)
        .map_max_entries("UDP_FLOWS", room.udp_flows)
        .map_max_entries("HALF_OPEN", room.half_open)
        // Two entries each.
        .map_max_entries("OPENING", room.half_open.saturating_mul(2))
        .map_max_entries("SESSIONS", room.sessions.saturating_mul(2))
        .map_max_entries("SLOTS", room.slots)
        // Backend 0 and pool 0 are nobody's.
        .map_max_entries("BACKENDS", room.backends + 1)
        .map_max_entries("WATCHES", room.backends + 1)
        .map_max_entries("LIMITS", room.backends + 1)
        .map_max_entries("POOL_LIMITS", room.services * 2 + 1)
        .map_max_entries("BACKEND_TRAFFIC", room.backends + 1)
        .map_max_entries("REPLIES", room.backends)
        .map_max_entries("SERVICES", room.services)
        .map_max_entries("BUDGETS", room.services)
        // As many configurations as there can be, for each service, and a name of each backend in each.
        .map_max_entries("QUIC_CONFIGS", room.services.saturating_mul(QUIC_CONFIGS))
        .map_max_entries("QUIC_SERVERS", room.backends.saturating_mul(QUIC_CONFIGS))
        .map_max_entries("VIPS", room.services)
        .map_max_entries("POOL_TRAFFIC", room.services * 2 + 1)
        .map_max_entries("GUARDS", room.services)
        .map_max_entries("VIP_RULES", room.services)
        .map_max_entries("RULES", room.prefixes)
        .map_max_entries("SOURCES", room.sources);
    for (name, entries) in rooms {
        loader.map_max_entries(name, *entries);
    }
    for name in maps::NAMES {
        loader.map_pin_path(name, directory.join(name));
    }
    loader.load(OBJECT).map_err(|error| {
        if is_permission(&error) {
            LoadError::Permission { what: "make BPF maps".to_owned() }
        } else {
            error.into()
        }
    })
}

/// Whether somewhere down the chain the kernel says "not permitted".
fn is_permission(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| error.source())
        .filter_map(|error| error.downcast_ref::<io::Error>())
        .any(|error| error.raw_os_error() == Some(libc::EPERM))
}

/// The names of all programs.
fn programs() -> impl Iterator<Item = &'static str> {
    std::iter::once(PROGRAM).chain(Stage::ALL.iter().map(|stage| stage.program()))
}

/// Loads the programs of all stages.
pub(super) fn load_programs(object: &mut Ebpf) -> Result<(), LoadError> {
    for name in programs() {
        xdp(object, name)?.load().map_err(|error| refused(error, "load the programs"))?;
    }
    Ok(())
}

pub(super) fn xdp<'a>(object: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp, ProgramError> {
    object.program_mut(name).ok_or(ProgramError::UnexpectedProgramType)?.try_into()
}

/// Fills the array through which the programs of stages are reached, and pins it. Returns its pin.
pub(super) fn pin_stages(object: &mut Ebpf, directory: &Path) -> Result<PathBuf, LoadError> {
    let mut map = object.take_map(STAGES).ok_or(ProgramError::UnexpectedProgramType)?;
    let mut array = ProgramArray::try_from(&mut map).map_err(EbpfError::from)?;
    for stage in Stage::ALL {
        let program = xdp(object, stage.program())?.fd()?;
        array.set(*stage as u32, program, 0).map_err(EbpfError::from)?;
    }
    let Map::ProgramArray(map) = map else { return Err(ProgramError::UnexpectedProgramType.into()) };
    let id = map.info().map_err(EbpfError::from)?.id();
    let path = directory.join(format!("{STAGES}-{id}"));
    map.pin(&path).map_err(|error| LoadError::Pin {
        what: "pin",
        path: path.clone(),
        source: io::Error::other(error),
    })?;
    Ok(path)
}

/// Unpins the arrays of programs that no link has any more.
fn forget_other_stages(directory: &Path, stages: &Path) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        let is_array = path.file_name().is_some_and(|name| name.as_bytes().starts_with(b"STAGES-"));
        if is_array
            && path != stages
            && let Err(error) = fs::remove_file(&path)
        {
            warn!(pin = %path.display(), "cannot remove the pin of an earlier version: {error}");
        }
    }
}

pub(super) fn refused(error: ProgramError, what: &str) -> LoadError {
    match &error {
        ProgramError::LoadError { io_error, .. } if io_error.raw_os_error() == Some(libc::EPERM) => {
            LoadError::Permission { what: what.to_owned() }
        }
        // What the verifier says to those without CAP_PERFMON, about arithmetic that it lets others do.
        ProgramError::LoadError { verifier_log, .. }
            if verifier_log.to_string().contains("prohibited for !root") =>
        {
            LoadError::Permission { what: what.to_owned() }
        }
        ProgramError::LoadError { .. } if !kernel::has_btf() => LoadError::NoBtf(error),
        _ => error.into(),
    }
}

/// Pins the program over the one that may be pinned there.
fn pin_program(program: &mut Xdp, name: &str, directory: &Path) -> Result<(), LoadError> {
    let path = directory.join(name);
    let aside = directory.join(format!("{name}-next"));
    let pin = |what, path: &Path, source| LoadError::Pin { what, path: path.to_owned(), source };
    let _ = fs::remove_file(&aside);
    program.pin(&aside).map_err(|error| pin("pin", &aside, io::Error::other(error)))?;
    fs::rename(&aside, &path).map_err(|source| pin("pin", &path, source))
}

/// Gives the link of an interface another program.
pub(super) fn swap(program: &mut Xdp, interface: &Attached, directory: &Path) -> Result<(), LoadError> {
    give(program, &link_pin(directory, interface.mode, interface.ifindex))
}

/// Gives a link another program, by one update.
pub(super) fn give(program: &mut Xdp, link: &Path) -> Result<(), LoadError> {
    let name = || link.display().to_string();
    let failed = |source| LoadError::Attach { name: name(), source };
    let pinned = PinnedLink::from_pin(link).map_err(|error| LoadError::Pin {
        what: "open",
        path: link.to_owned(),
        source: io::Error::other(error),
    })?;
    let Ok(link) = XdpLink::try_from(FdLink::from(pinned)) else {
        return Err(LoadError::NoLink { name: name() });
    };
    let id = program.attach_to_link(link).map_err(failed)?;
    // The pin keeps it; our descriptor is not needed.
    drop(program.take_link(id).map_err(failed)?);
    Ok(())
}

fn attach(
    program: &mut Xdp,
    name: &str,
    wanted: Option<Native>,
    directory: &Path,
) -> Result<Attached, LoadError> {
    let ifindex = index_of(name)?;
    let failed = |source| LoadError::Attach { name: name.to_owned(), source };
    for mode in [Native::Native, Native::Generic] {
        let path = link_pin(directory, mode, ifindex);
        let Ok(pinned) = PinnedLink::from_pin(&path) else { continue };
        let alive = link_ifindex(&path).is_ok_and(|index| index == ifindex);
        if alive && wanted.is_none_or(|wanted| wanted == mode) {
            let Ok(link) = XdpLink::try_from(FdLink::from(pinned)) else {
                return Err(LoadError::NoLink { name: name.to_owned() });
            };
            let id = program.attach_to_link(link).map_err(failed)?;
            // The pin keeps it; our descriptor is not needed.
            drop(program.take_link(id).map_err(failed)?);
            info!(
                interface = name,
                mode = mode.name(),
                "adopted the link, with the program replaced in place"
            );
            return Ok(Attached { name: name.to_owned(), ifindex, mode, adopted: true });
        }
        drop(pinned.unpin());
    }
    match wanted {
        Some(mode) => attach_anew(program, name, ifindex, mode, directory),
        None => match attach_anew(program, name, ifindex, Native::Native, directory) {
            Err(LoadError::NotNative { source, .. }) => {
                warn!(
                    interface = name,
                    "the driver has no native XDP ({source}): running in generic mode, which is several times slower"
                );
                attach_anew(program, name, ifindex, Native::Generic, directory)
            }
            other => other,
        },
    }
}

fn attach_anew(
    program: &mut Xdp,
    name: &str,
    ifindex: u32,
    mode: Native,
    directory: &Path,
) -> Result<Attached, LoadError> {
    let name = name.to_owned();
    let id = match program.attach_to_if_index(ifindex, mode.flag()) {
        Ok(id) => id,
        Err(error) => return Err(attach_error(name, mode, error)),
    };
    let link = match program.take_link(id) {
        Ok(link) => link,
        Err(source) => return Err(LoadError::Attach { name, source }),
    };
    let Ok(link) = FdLink::try_from(link) else { return Err(LoadError::NoLink { name }) };
    let path = link_pin(directory, mode, ifindex);
    link.pin(&path).map_err(|error| LoadError::Pin { what: "pin", path, source: io::Error::other(error) })?;
    info!(interface = name, mode = mode.name(), "attached");
    Ok(Attached { name, ifindex, mode, adopted: false })
}

fn attach_error(name: String, mode: Native, error: ProgramError) -> LoadError {
    let code = match &error {
        ProgramError::SyscallError(error) => error.io_error.raw_os_error(),
        _ => None,
    };
    match code {
        Some(libc::EBUSY | libc::EEXIST) => LoadError::Occupied { name },
        Some(libc::EPERM) => LoadError::Permission { what: format!("attach to {name}") },
        Some(libc::EOPNOTSUPP | libc::EINVAL | libc::ENOTSUP) if mode == Native::Native => {
            LoadError::NotNative {
                name,
                source: io::Error::from_raw_os_error(code.unwrap_or(libc::EOPNOTSUPP)),
            }
        }
        _ => LoadError::Attach { name, source: error },
    }
}

fn index_of(name: &str) -> Result<u32, LoadError> {
    let missing = || LoadError::NoInterface { name: name.to_owned(), present: interfaces().join(", ") };
    let c_name = CString::new(name).map_err(|_| missing())?;
    // SAFETY: a string that ends.
    match unsafe { libc::if_nametoindex(c_name.as_ptr()) } {
        0 => Err(missing()),
        index => Ok(index),
    }
}

fn interfaces() -> Vec<String> {
    let mut names = Vec::new();
    // SAFETY: the list is the C library's; it ends with an element without index, and is given back.
    unsafe {
        let list = libc::if_nameindex();
        let mut at = list;
        while !at.is_null() && (*at).if_index != 0 {
            names.push(std::ffi::CStr::from_ptr((*at).if_name).to_string_lossy().into_owned());
            at = at.add(1);
        }
        if !list.is_null() {
            libc::if_freenameindex(list);
        }
    }
    names
}

/// (By index: a name may hold a dot, which a BPF file system reserves.)
fn link_pin(directory: &Path, mode: Native, ifindex: u32) -> PathBuf {
    directory.join(format!("link-{}-{ifindex}", mode.name()))
}

/// Whether an interface took its link with it, or the link is not there at all.
pub(super) fn is_gone(directory: &Path, interface: &Attached) -> bool {
    match link_ifindex(&link_pin(directory, interface.mode, interface.ifindex)) {
        Ok(index) => index != interface.ifindex,
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

/// The interface that a pinned link is on; 0 once the interface is gone.
fn link_ifindex(path: &Path) -> io::Result<u32> {
    let fd = bpf::open_pin(path)?;
    bpf::link_ifindex(fd.as_fd())
}

/// Takes the program off interfaces that are not among these: not configured any more, or gone.
pub fn forget_other_links(pin_dir: &Path, attached: &[Attached]) {
    let directory = maps::directory(pin_dir);
    let Ok(entries) = fs::read_dir(&directory) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        let ours = |a: &Attached| path == link_pin(&directory, a.mode, a.ifindex);
        let is_link = path.file_name().is_some_and(|name| name.as_bytes().starts_with(b"link-"));
        if is_link && !attached.iter().any(ours) {
            match fs::remove_file(&path) {
                Ok(()) => {
                    info!(pin = %path.display(), "detached from an interface that is not configured any more")
                }
                Err(error) => warn!(pin = %path.display(), "cannot detach: {error}"),
            }
        }
    }
}

/// Takes everything off: links first, so that no packet meets half a data path. Returns what was removed.
///
/// # Errors
///
/// Names the first pin that cannot be removed.
pub fn detach(pin_dir: &Path) -> Result<Vec<PathBuf>, LoadError> {
    let mut pins = Vec::new();
    for directory in migrate::directories(pin_dir) {
        pins.extend(detach_from(&directory)?);
    }
    // The base may be shared; it is removed only if it is empty.
    let _ = fs::remove_dir(pin_dir);
    Ok(pins)
}

fn detach_from(directory: &Path) -> Result<Vec<PathBuf>, LoadError> {
    let failed = |what, path: &Path, source| LoadError::Pin { what, path: path.to_owned(), source };
    let entries = fs::read_dir(directory).map_err(|source| failed("read", directory, source))?;
    let mut pins: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    let is_link = |path: &Path| path.file_name().is_some_and(|name| name.as_bytes().starts_with(b"link-"));
    pins.sort_by_key(|path| !is_link(path));
    for path in &pins {
        if is_link(path) {
            bpf::open_pin(path)
                .and_then(|link| bpf::detach_link(link.as_fd()))
                .map_err(|source| failed("detach", path, source))?;
        }
        fs::remove_file(path).map_err(|source| failed("remove", path, source))?;
    }
    fs::remove_dir(directory).map_err(|source| failed("remove", directory, source))?;
    Ok(pins)
}
