//! The few calls of bpf(2) that the lab makes itself, apart from the library that the product uses.

use std::{
    ffi::{CStr, c_long},
    io,
    os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd},
};

use anyhow::{Result, bail};

use crate::Namespace;

/// Loads an XDP program given as instructions, for frames in several buffers too, and returns its
/// descriptor.
///
/// # Errors
/// If the verifier refuses; the message has its log.
pub fn load_xdp(name: &str, instructions: &[u64]) -> Result<OwnedFd> {
    const LICENCE: &CStr = c"Dual MIT/GPL";
    let mut log = vec![0_u8; 1 << 16];
    let mut program = LoadProgram {
        kind: PROG_TYPE_XDP,
        instruction_count: u32::try_from(instructions.len())?,
        instructions: address_of(instructions),
        licence: LICENCE.as_ptr().expose_provenance() as u64,
        log_level: 1,
        log_size: u32::try_from(log.len())?,
        log: log.as_mut_ptr().expose_provenance() as u64,
        kernel_version: 0,
        // Or else veth refuses it at an MTU above 3506.
        flags: XDP_HAS_FRAGS,
        name: [0; 16],
    };
    // The last byte stays the terminator.
    for (to, from) in program.name[..15].iter_mut().zip(name.bytes()) {
        *to = from;
    }
    // SAFETY: instructions, licence and log outlive the call, and have the sizes stated.
    match unsafe { call(Command::LoadProgram, &mut program) } {
        // SAFETY: the kernel has just made this descriptor for us.
        Ok(fd) => Ok(unsafe { owned(fd) }),
        Err(error) => {
            let text = CStr::from_bytes_until_nul(&log).unwrap_or_default().to_string_lossy();
            bail!("the kernel refuses the program {name}: {error}\n{text}")
        }
    }
}

/// How XDP is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpMode {
    /// In the driver.
    Native,
    /// In the stack, after the socket buffer was made.
    Generic,
}

/// Attaches an XDP program to an interface for as long as the returned link lives.
///
/// # Errors
/// If the interface has another program, or the driver cannot.
pub fn attach_xdp(
    namespace: &Namespace,
    interface: u32,
    program: impl AsFd,
    mode: XdpMode,
) -> Result<OwnedFd> {
    let mut link = CreateLink {
        program: program.as_fd().as_raw_fd(),
        interface,
        attach_type: ATTACH_TYPE_XDP,
        flags: match mode {
            XdpMode::Generic => 1 << 1,
            XdpMode::Native => 1 << 2,
        },
    };
    // SAFETY: the command has no pointers.
    let fd = namespace.run(|| unsafe { call(Command::CreateLink, &mut link) })?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { owned(fd) })
}

/// The descriptor of a pinned object.
///
/// # Errors
/// If nothing is pinned there.
pub fn open_pin(path: &CStr) -> io::Result<OwnedFd> {
    let mut object = PinnedObject { path: path.as_ptr().expose_provenance() as u64, fd: 0, flags: 0 };
    // SAFETY: the path outlives the call.
    let fd = unsafe { call(Command::OpenPin, &mut object) }?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { owned(fd) })
}

/// Pins an object.
///
/// # Errors
/// If the path is taken, or not in a bpffs.
pub fn pin(object: impl AsFd, path: &CStr) -> io::Result<()> {
    let mut object = PinnedObject {
        path: path.as_ptr().expose_provenance() as u64,
        fd: object.as_fd().as_raw_fd(),
        flags: 0,
    };
    // SAFETY: the path outlives the call.
    unsafe { call(Command::Pin, &mut object) }.map(drop)
}

/// The kernel's id of a program.
///
/// # Errors
/// If the descriptor is not a program's.
pub fn program_id(program: impl AsFd) -> io::Result<u32> {
    // `type` and `id` come first in `struct bpf_prog_info`.
    let mut information = [0_u32; 2];
    let mut request = Information {
        fd: program.as_fd().as_raw_fd(),
        size: size_of_val(&information) as u32,
        information: information.as_mut_ptr().expose_provenance() as u64,
    };
    // SAFETY: the kernel writes no more than the stated size.
    unsafe { call(Command::Information, &mut request) }?;
    Ok(information[1])
}

/// Whether the kernel still has a program of this id.
///
/// # Errors
/// If it does not tell (that needs `CAP_SYS_ADMIN`).
pub fn program_exists(id: u32) -> io::Result<bool> {
    let mut request = ProgramById { id, next: 0, flags: 0 };
    // SAFETY: the command has no pointers.
    match unsafe { call(Command::ProgramById, &mut request) } {
        Ok(fd) => {
            // SAFETY: the kernel has just made this descriptor for us.
            drop(unsafe { owned(fd) });
            Ok(true)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// `enum bpf_cmd`
#[derive(Clone, Copy)]
pub(crate) enum Command {
    LoadProgram = 5,
    Pin = 6,
    OpenPin = 7,
    TestRun = 10,
    ProgramById = 13,
    Information = 15,
    CreateLink = 28,
}

/// Calls bpf(2) with a prefix of `union bpf_attr`.
///
/// # Safety
/// Addresses in `attribute` must point to memory of the size that the command expects, for as long
/// as the call takes.
pub(crate) unsafe fn call<T>(command: Command, attribute: &mut T) -> io::Result<c_long> {
    // SAFETY: the pointer and size are those of a live value; the caller vouches for what is in it.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command as c_long, std::ptr::from_mut(attribute), size_of::<T>())
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// The address of a slice as the kernel wants it, which is 0 for none.
pub(crate) fn address_of<T>(slice: &[T]) -> u64 {
    if slice.is_empty() { 0 } else { slice.as_ptr().expose_provenance() as u64 }
}

/// # Safety
/// The descriptor must be open and nobody else's.
unsafe fn owned(fd: c_long) -> OwnedFd {
    let fd = i32::try_from(fd).expect("descriptors are small");
    // SAFETY: the caller vouches for it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

const PROG_TYPE_XDP: u32 = 6;
const XDP_HAS_FRAGS: u32 = 1 << 5;
const ATTACH_TYPE_XDP: u32 = 37;

#[repr(C)]
struct LoadProgram {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    licence: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
}
const _: () = assert!(size_of::<LoadProgram>() == 64);

#[repr(C)]
struct CreateLink {
    program: i32,
    interface: u32,
    attach_type: u32,
    flags: u32,
}

#[repr(C)]
struct PinnedObject {
    path: u64,
    fd: i32,
    flags: u32,
}

#[repr(C)]
struct Information {
    fd: i32,
    size: u32,
    information: u64,
}

#[repr(C)]
struct ProgramById {
    id: u32,
    next: u32,
    flags: u32,
}
