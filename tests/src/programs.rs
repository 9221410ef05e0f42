//! Small XDP programs, assembled by hand: the floor of measurements, what a veth peer needs, and
//! generators for [`LiveFrames`](crate::test_run::LiveFrames).

use std::os::fd::OwnedFd;

use anyhow::Result;

use crate::bpf::load_xdp;

/// A program that does nothing but return `action` (2: pass, 3: transmit, ...).
///
/// # Errors
/// If the kernel does not let us load programs.
pub fn returning(action: i32) -> Result<OwnedFd> {
    load_xdp("returning", &[mov(R0, action), EXIT])
}

/// A program that passes every frame up: what gives a veth end its NAPI context.
///
/// # Errors
/// If the kernel does not let us load programs.
pub fn passing() -> Result<OwnedFd> {
    const XDP_PASS: i32 = 2;
    returning(XDP_PASS)
}

/// A program that redirects every frame to an interface.
///
/// # Errors
/// If the kernel does not let us load programs.
pub fn redirecting(interface: u32) -> Result<OwnedFd> {
    load_xdp("redirecting", &redirect(interface))
}

/// A program that returns the number of the interface that a frame came in on, as its verdict.
///
/// # Errors
/// If the kernel does not let us load programs.
pub fn reporting_interface() -> Result<OwnedFd> {
    const INGRESS_IFINDEX: i16 = 12;
    load_xdp("reporting", &[load_word(R0, R1, INGRESS_IFINDEX), EXIT])
}

/// The protocol of the frames that [`spraying`] makes flows of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spray {
    /// TCP, for example a flood of SYNs. The sequence number takes part.
    Tcp,
    /// UDP with at least four bytes of payload, which take part.
    Udp,
}

impl Spray {
    /// Where 32 bits lie that no receiver minds.
    const fn spare(self) -> i16 {
        match self {
            Self::Tcp => L4 + 4,
            Self::Udp => L4 + 8,
        }
    }
}

/// A program that gives every frame a random source address (its low 16 bits) and a random source
/// port from 1024, and redirects it to an interface.
///
/// The frame has to be untagged IPv4 without options; [`spray_template`] makes it ready. Each
/// random word goes along with its complement, in a field that both checksums cover as well, so
/// every checksum stays right without being touched.
///
/// # Errors
/// If the kernel does not let us load programs.
pub fn spraying(spray: Spray, interface: u32) -> Result<OwnedFd> {
    let needed = i32::from(spray.spare()) + 4;
    let change = [
        mov_reg(R6, R1),
        call(GET_PRANDOM_U32),
        mov_reg(R7, R0),
        and(R7, 0xffff),
        mov_reg(R8, R0),
        rsh(R8, 16),
        and(R8, 0xffff),
        // The port's high byte comes first in memory: this makes it at least 4.
        or(R8, 4),
        load_word(R2, R6, 0),
        load_word(R3, R6, 4),
        mov_reg(R1, R2),
        add(R1, needed),
        // To the end, past nine stores and the redirect.
        jump_if_greater(R1, R3, 9 + 4),
        store_half(R2, SOURCE_LOW, R7),
        store_half(R2, SOURCE_PORT, R8),
        mov_reg(R1, R7),
        xor(R1, 0xffff),
        store_half(R2, IP_ID, R1),
        store_half(R2, spray.spare(), R1),
        mov_reg(R1, R8),
        xor(R1, 0xffff),
        store_half(R2, spray.spare() + 2, R1),
    ];
    let too_short = [mov(R0, 0), EXIT];
    load_xdp("spraying", &[change.as_slice(), &redirect(interface), &too_short].concat())
}

/// Writes into a frame with right checksums what [`spraying`] expects there, and makes the
/// checksums right again.
///
/// # Panics
/// If the frame is too short for its protocol.
pub fn spray_template(spray: Spray, frame: &mut [u8]) {
    let checksum = match spray {
        Spray::Tcp => L4 as usize + 16,
        Spray::Udp => L4 as usize + 6,
    };
    let spare = spray.spare() as usize;
    for (field, value) in [
        (SOURCE_LOW as usize, 0),
        (SOURCE_PORT as usize, 0),
        (IP_ID as usize, 0xffff),
        (spare, 0xffff),
        (spare + 2, 0xffff),
    ] {
        let old = u16::from_be_bytes([frame[field], frame[field + 1]]);
        frame[field..field + 2].copy_from_slice(&u16::to_be_bytes(value));
        let in_header = field == SOURCE_LOW as usize || field == IP_ID as usize;
        let in_segment = field != IP_ID as usize;
        if in_header {
            adjust(frame, IP_CHECKSUM, old, value);
        }
        if in_segment {
            adjust(frame, checksum, old, value);
        }
    }
}

/// RFC 1624, equation 3.
fn adjust(frame: &mut [u8], checksum: usize, old: u16, new: u16) {
    let sum = u32::from(!u16::from_be_bytes([frame[checksum], frame[checksum + 1]]))
        + u32::from(!old)
        + u32::from(new);
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    let value = !u16::try_from(folded).expect("folded twice");
    frame[checksum..checksum + 2].copy_from_slice(&value.to_be_bytes());
}

const IP_ID: i16 = 14 + 4;
const IP_CHECKSUM: usize = 14 + 10;
const SOURCE_LOW: i16 = 14 + 14;
const L4: i16 = 14 + 20;
const SOURCE_PORT: i16 = L4;

fn redirect(interface: u32) -> [u64; 4] {
    [mov(R1, interface.cast_signed()), mov(R2, 0), call(REDIRECT), EXIT]
}

// Helpers of `enum bpf_func_id`.
const GET_PRANDOM_U32: i32 = 7;
const REDIRECT: i32 = 23;

// Registers: R0 returns, R1 to R5 are arguments and lost in calls, R6 to R9 stay.
const R0: u8 = 0;
const R1: u8 = 1;
const R2: u8 = 2;
const R3: u8 = 3;
const R6: u8 = 6;
const R7: u8 = 7;
const R8: u8 = 8;

// Opcodes, as RFC 9669 has them: 0x07 and 0x0f are the 64-bit ALU with constant and register.
const EXIT: u64 = instruction(0x95, 0, 0, 0, 0);

const fn mov(to: u8, value: i32) -> u64 {
    instruction(0xb7, to, 0, 0, value)
}

const fn mov_reg(to: u8, from: u8) -> u64 {
    instruction(0xbf, to, from, 0, 0)
}

const fn add(to: u8, value: i32) -> u64 {
    instruction(0x07, to, 0, 0, value)
}

const fn or(to: u8, value: i32) -> u64 {
    instruction(0x47, to, 0, 0, value)
}

const fn and(to: u8, value: i32) -> u64 {
    instruction(0x57, to, 0, 0, value)
}

const fn xor(to: u8, value: i32) -> u64 {
    instruction(0xa7, to, 0, 0, value)
}

const fn rsh(to: u8, bits: i32) -> u64 {
    instruction(0x77, to, 0, 0, bits)
}

const fn load_word(to: u8, from: u8, offset: i16) -> u64 {
    instruction(0x61, to, from, offset, 0)
}

const fn store_half(to: u8, offset: i16, from: u8) -> u64 {
    instruction(0x6b, to, from, offset, 0)
}

const fn jump_if_greater(left: u8, right: u8, by: i16) -> u64 {
    instruction(0x2d, left, right, by, 0)
}

const fn call(helper: i32) -> u64 {
    instruction(0x85, 0, 0, 0, helper)
}

/// The 64 bits of an instruction on a little-endian machine.
const fn instruction(opcode: u8, to: u8, from: u8, offset: i16, value: i32) -> u64 {
    opcode as u64
        | (to as u64) << 8
        | (from as u64) << 12
        | (offset.cast_unsigned() as u64) << 16
        | (value.cast_unsigned() as u64) << 32
}
