//! QUIC by connection id: a client that changes its address keeps its backend.
//!
//! A QUIC connection is known by the ids that its ends give each other, not by addresses and ports (RFC 9000, section 5.1). A
//! server that puts its own name into the ids that it gives out can be found by whoever knows how to read them:
//! draft-ietf-quic-load-balancers-21, "QUIC-LB". Such an id is
//!
//! ```text
//! config: 3 bits | length or anything: 5 bits | server id | nonce | more, if the server likes
//! ```
//!
//! where server id and nonce lie there as they are, or encrypted with AES-128: as one block if they are 16 bytes, else by a
//! Feistel network of four rounds. `config` says which [`Config`] reads it; 7 is for servers that have none.
//!
//! **What goes by its id**: a datagram with a short header, and one with a long header whose id the server has chosen, if the id
//! names a backend whose generation is that of its entry in `QUIC_SERVERS`. No table of flows is asked or written: the id says
//! it all, wherever the datagram comes from. So nothing that is spoofed with a stolen id leaves a trace.
//!
//! **What does not**: Initial and 0-RTT packets of QUIC versions 1 and 2 (RFC 9000, RFC 9369), whose id the *client* has drawn at
//! random, even if by chance it can be read. They go by the ordinary rule (split, slot, track), as whatever names nobody
//! does. Else a new connection would be with a backend that drains, or in a canary that was rolled back, as often as a random id
//! names it. The rest of the handshake comes from the same address (RFC 9000, section 9), so that the ordinary rule would have done
//! for it, too; of versions that are not known nothing but the id is known, and it counts.
//!
//! A datagram holds packets of one connection, so that its first header is enough; of that no more is read than all versions have
//! in common (RFC 8999), but for the two bits that tell an Initial packet.

use bytemuck::{Pod, Zeroable};

use crate::abi::FlowKey;
use crate::aes::{self, Block, Schedule};
use crate::parse::{self, Transport};
use crate::pipeline::{Packet, Step, Tables, Target, ended, find_service};
use crate::select::Place;
use crate::stage::Stage;
use crate::verdict::{Account, Event, Reason, Verdict};
use crate::wire::{LongHeader, QuicId, Udp, Wire};

/// Configurations are numbered from 0 to this; 7 says that there is none.
pub const MAX_CONFIG: u8 = 6;
/// A connection id has at most so many bytes, the first octet included (RFC 9000, section 17.2).
pub const MAX_ID: usize = 20;
/// A nonce has at least so many bytes.
pub const MIN_NONCE: usize = 4;
/// A server id has at most so many bytes.
pub const MAX_SERVER_ID: usize = MAX_ID - 1 - MIN_NONCE;

/// Key of `QUIC_CONFIGS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
pub struct ConfigKey {
    /// Index of the service.
    pub service: u32,
    /// What the first three bits of an id say.
    pub config: u32,
}

/// A server id: its bytes as big-endian numbers, zeros behind.
pub type ServerId = Block;

/// Key of `QUIC_SERVERS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
pub struct ServerKey {
    /// Index of the service.
    pub service: u32,
    /// Which configuration the id was read by.
    pub config: u32,
    /// Who it names.
    pub server: ServerId,
}

/// Value of `QUIC_SERVERS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Server {
    /// The backend.
    pub backend: u16,
    /// Zero.
    pub pad: u16,
    /// The backend's generation: another one, and the entry is void.
    pub generation: u32,
}

/// Value of `QUIC_CONFIGS`: how ids are read. Masks and steps are worked out beforehand, so that one program reads all of them.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Config {
    /// Round keys, as [`kind`](Self::kind) needs them.
    pub keys: Schedule,
    /// The bits of server id and nonce that are the server id.
    pub server: [u32; 4],
    /// The bits of the left half of both.
    pub left: [u32; 3],
    /// The bits of the right half, moved to the front.
    pub right: [u32; 3],
    /// [`Config::PLAIN`], [`Config::BLOCK`] or [`Config::PASSES`].
    pub kind: u32,
    /// Bytes of server id and nonce.
    pub length: u32,
    /// Bytes that the right half stands behind the front.
    pub offset: u32,
    /// The last pass that is needed: 2, or 1 for a server id that is longer than the left half.
    pub last_pass: u32,
    /// 1 if the last five bits of the first octet say how long the id is.
    pub tells_length: u32,
    /// Zero.
    pub pad: u32,
}

impl Config {
    /// Nothing is encrypted.
    pub const PLAIN: u32 = 0;
    /// One block.
    pub const BLOCK: u32 = 1;
    /// Four passes.
    pub const PASSES: u32 = 2;

    /// The server id in what follows the first octet of an id.
    #[must_use]
    #[inline(always)]
    pub fn server_id(&self, words: &[u32; 5]) -> ServerId {
        let [a, b, c, d, _] = *words;
        let plain = match self.kind {
            Self::PASSES => self.passes(words),
            Self::BLOCK => aes::decrypt(&self.keys, [a, b, c, d]),
            _ => [a, b, c, d],
        };
        let [e, f, g, h] = self.server;
        [plain[0] & e, plain[1] & f, plain[2] & g, plain[3] & h]
    }

    /// The four passes backwards, as far as they are needed.
    #[inline(always)]
    fn passes(&self, words: &[u32; 5]) -> Block {
        let mut this = masked(moved_left(words, self.offset), &self.right);
        let mut other = masked([words[0], words[1], words[2]], &self.left);
        let mut pass = 4;
        while pass > 0 && pass >= self.last_pass {
            let cipher = aes::encrypt(&self.keys, [this[0], this[1], this[2], self.length << 8 | pass]);
            let mask = if pass % 2 == 0 { &self.left } else { &self.right };
            let next = [other[0] ^ cipher[0], other[1] ^ cipher[1], other[2] ^ cipher[2]];
            other = this;
            this = masked(next, mask);
            pass -= 1;
        }
        if self.last_pass == 2 {
            return [this[0], this[1], this[2], 0];
        }
        let right = moved_right(this, self.offset);
        [other[0] | right[0], other[1] | right[1], other[2] | right[2], right[3]]
    }

    /// Whether an id may be one of these.
    #[inline(always)]
    const fn fits(&self, query: &Query) -> bool {
        let told = query.first & 31;
        if query.length == 0 {
            // Nobody knows how long it is, unless it says so itself.
            return self.tells_length == 0 || told >= self.length;
        }
        query.length > self.length && (self.tells_length == 0 || told + 1 == query.length)
    }
}

#[inline(always)]
const fn masked(words: [u32; 3], mask: &[u32; 3]) -> [u32; 3] {
    [words[0] & mask[0], words[1] & mask[1], words[2] & mask[2]]
}

#[inline(always)]
const fn pair(high: u32, low: u32) -> u64 {
    (high as u64) << 32 | low as u64
}

/// The first 12 of the bytes from `bytes` on; at most 9.
#[inline(always)]
const fn moved_left(words: &[u32; 5], bytes: u32) -> [u32; 3] {
    let [v, w, x, y, z] = *words;
    let all = [pair(v, w), pair(x, y), pair(z, 0), 0];
    let [a, b, c] = if bytes < 8 { [all[0], all[1], all[2]] } else { [all[1], all[2], all[3]] };
    let bits = bytes % 8 * 8;
    let (front, next) = (a << bits | b >> 1 >> (63 - bits), b << bits | c >> 1 >> (63 - bits));
    [(front >> 32) as u32, front as u32, (next >> 32) as u32]
}

/// The same bytes behind `bytes` zeros; at most 9.
#[inline(always)]
const fn moved_right(words: [u32; 3], bytes: u32) -> Block {
    let (front, next) = (pair(words[0], words[1]), pair(words[2], 0));
    let (a, b) = if bytes < 8 { (front, next) } else { (0, front) };
    let bits = bytes % 8 * 8;
    let (front, next) = (a >> bits, b >> bits | a << 1 << (63 - bits));
    [(front >> 32) as u32, front as u32, (next >> 32) as u32, next as u32]
}

/// An id whose server is asked for.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Query {
    /// Index of the service.
    pub service: u32,
    /// The first octet of the id.
    pub first: u32,
    /// Its length in bytes; 0: it is in a short header, which does not say.
    pub length: u32,
    /// What follows the first octet, as big-endian numbers; with whatever stands behind the id.
    pub words: [u32; 5],
}

/// What the header of a datagram shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Sight {
    /// An id that the server may have chosen.
    Id = 0,
    /// An id that the client has chosen.
    Opening = 1,
    /// None that could be read.
    Nothing = 2,
}

/// QUIC version 1 (RFC 9000).
const VERSION_1: u32 = 1;
/// QUIC version 2 (RFC 9369).
const VERSION_2: u32 = 0x6b33_43cf;

/// Whether a long header is that of a packet whose id the client may have chosen: Initial or 0-RTT.
#[inline(always)]
const fn opens(first: u8, version: u32) -> bool {
    // Version 2 has the types rotated by one (RFC 9369, section 3.2).
    let kind = first >> 4 & 3;
    match version {
        VERSION_1 => kind <= 1,
        VERSION_2 => kind == 1 || kind == 2,
        _ => false,
    }
}

impl Query {
    /// Reads the destination connection id of a datagram.
    ///
    /// Of an id so many bytes are looked at as it may have at most, whatever stands behind it: no datagram of an established
    /// connection is so short that they are not there (RFC 9000, section 10.3: 21 bytes and more). A shorter one shows nothing.
    #[inline(always)]
    pub fn read<P: Packet>(&mut self, packet: &P, transport: &Transport) -> Sight {
        let start = transport.l4 + Udp::SIZE;
        let Some(udp) = packet.view::<Udp>(transport.l4) else { return Sight::Nothing };
        let length = u32::from(u16::from_be_bytes(udp.length)).wrapping_sub(Udp::SIZE as u32);
        let Some(header) = packet.view::<LongHeader>(start) else { return Sight::Nothing };
        let (at, own) = if header.first & 0x80 != 0 {
            let own = u32::from(header.id_length);
            if length < LongHeader::SIZE as u32 + own || own == 0 {
                return Sight::Nothing;
            }
            if opens(header.first, u32::from_be_bytes(header.version)) {
                return Sight::Opening;
            }
            (start + LongHeader::SIZE, own)
        } else {
            if length < 1 + QuicId::SIZE as u32 {
                return Sight::Nothing;
            }
            (start + 1, 0)
        };
        let Some(id) = packet.view::<QuicId>(at) else { return Sight::Nothing };
        let [a, b, c, d] = id.words;
        let [x, y, z] = id.rest;
        self.first = u32::from(id.first);
        self.length = own;
        self.words = [
            u32::from_be_bytes(a),
            u32::from_be_bytes(b),
            u32::from_be_bytes(c),
            u32::from_be_bytes(d),
            u32::from_be_bytes([x, y, z, 0]),
        ];
        Sight::Id
    }
}

/// What is known of the server that an id names, in a register: a backend's id, or one of these.
pub mod found {
    /// Nobody.
    pub const NOBODY: u32 = 0;
    /// A backend that takes nothing by this id any more.
    pub const VOID: u32 = 1 << 16;
}

/// Whom an id names: a backend's id, or a word of [`found`].
#[inline(always)]
pub fn find<T: Tables>(tables: &T, query: &Query) -> u32 {
    let config = query.first >> 5;
    let Some(reader) = tables.quic_config(&ConfigKey { service: query.service, config }) else {
        return found::NOBODY;
    };
    if !reader.fits(query) {
        return found::NOBODY;
    }
    let server = reader.server_id(&query.words);
    let Some(server) = tables.quic_server(&ServerKey { service: query.service, config, server }) else {
        return found::NOBODY;
    };
    let Some(backend) = tables.backend(server.backend) else { return found::NOBODY };
    let life = backend.life();
    if life.is_usable() && life.generation() == server.generation {
        server.backend.into()
    } else {
        found::VOID
    }
}

/// [`Stage::Quic`](crate::stage::Stage::Quic): from a client to a service whose backends are named by connection ids.
///
/// # Errors
///
/// Why it does not get to the backend that its id names.
#[inline(always)]
pub fn quic<T: Tables>(packet: &mut T::Packet, tables: &T) -> Result<Step, Reason> {
    let network = parse::network(packet)?;
    let transport = parse::transport(packet, &network)?;
    // It was there a moment ago.
    let index = find_service(tables, &network, &transport).ok_or(Reason::NotOurs)?;
    let mut query = Query { service: index, first: 0, length: 0, words: [0; 5] };
    let backend = match query.read(packet, &transport) {
        Sight::Id => tables.find_server(&query),
        Sight::Opening => {
            tables.event(Event::QuicOpening);
            return Ok(Step::Next(Stage::Attend));
        }
        Sight::Nothing => found::NOBODY,
    };
    if backend == found::NOBODY || backend >= found::VOID {
        tables.event(if backend == found::NOBODY { Event::QuicUnknown } else { Event::QuicVoid });
        return Ok(Step::Next(Stage::Attend));
    }
    let service = tables.service(index).ok_or(Reason::NoTable)?;
    let key = FlowKey::of_request(&network, &transport, index);
    let spread = service.backend_hash(&key) as u32;
    let place = Place { backend: backend as u16, begins: false, spread };
    let target = Target::of(tables, &place)?;
    tables.event(Event::QuicById);
    let account = Account::of(place.backend, target.backend, &network, place.begins);
    let sent = tables.send(packet, index, place);
    ended(sent.map(|ifindex| Verdict { reason: Reason::Forwarded, ifindex, account }))
}

#[cfg(any(test, feature = "std"))]
pub use codec::{Codec, Refused};

#[cfg(any(test, feature = "std"))]
mod codec {
    use core::fmt;

    use super::*;

    /// How servers and balancers agree to write ids.
    #[derive(Clone, Copy, PartialEq, Eq)]
    pub struct Codec {
        /// Its number, from 0 to [`MAX_CONFIG`].
        pub config: u8,
        /// Bytes of a server id.
        pub server_id_length: u8,
        /// Bytes of a nonce.
        pub nonce_length: u8,
        /// Encrypts both.
        pub key: Option<[u8; 16]>,
    }

    impl fmt::Debug for Codec {
        fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
            let Self { config, server_id_length, nonce_length, key } = self;
            let key = if key.is_some() { "secret" } else { "none" };
            write!(out, "Codec({config}: {server_id_length} + {nonce_length} bytes, key: {key})")
        }
    }

    /// Why nobody could read such ids.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Refused {
        /// The number is none.
        Config,
        /// A server id has no bytes.
        ServerId,
        /// A nonce has less than [`MIN_NONCE`] bytes.
        Nonce,
        /// Both together have more than an id has room for.
        TooLong,
    }

    impl Codec {
        /// Bytes of server id and nonce.
        const fn length(&self) -> usize {
            self.server_id_length as usize + self.nonce_length as usize
        }

        /// Whether ids can be written so.
        ///
        /// # Errors
        ///
        /// Why not.
        pub const fn check(&self) -> Result<(), Refused> {
            match () {
                () if self.config > MAX_CONFIG => Err(Refused::Config),
                () if self.server_id_length == 0 => Err(Refused::ServerId),
                () if (self.nonce_length as usize) < MIN_NONCE => Err(Refused::Nonce),
                () if self.length() > MAX_ID - 1 => Err(Refused::TooLong),
                () => Ok(()),
            }
        }

        /// For the kernel.
        ///
        /// # Errors
        ///
        /// As [`check`](Self::check).
        pub fn reader(&self, tells_length: bool) -> Result<Config, Refused> {
            self.check()?;
            let length = self.length();
            let kind = match self.key {
                None => Config::PLAIN,
                Some(_) if length == 16 => Config::BLOCK,
                Some(_) => Config::PASSES,
            };
            let half = length.div_ceil(2);
            let (mut left, mut right) = ([0u8; 12], [0u8; 12]);
            left[..half].fill(0xff);
            right[..half].fill(0xff);
            if length % 2 == 1 {
                left[half - 1] = 0xf0;
                right[0] = 0x0f;
            }
            let mut server = [0u8; 16];
            server[..usize::from(self.server_id_length)].fill(0xff);
            Ok(Config {
                keys: match (kind, &self.key) {
                    (Config::BLOCK, Some(key)) => aes::decryption(key),
                    (_, Some(key)) => aes::encryption(key),
                    (_, None) => [0; 44],
                },
                server: numbers(&server),
                left: numbers(&left),
                right: numbers(&right),
                kind,
                length: length as u32,
                offset: (length - half) as u32,
                last_pass: if usize::from(self.server_id_length) * 2 <= length { 2 } else { 1 },
                tells_length: tells_length.into(),
                pad: 0,
            })
        }

        /// A server id, as a key of `QUIC_SERVERS` has it; `None` if it is longer than that.
        #[must_use]
        pub fn server_id(bytes: &[u8]) -> Option<ServerId> {
            let mut padded = [0u8; 16];
            padded.get_mut(..bytes.len())?.copy_from_slice(bytes);
            Some(numbers(&padded))
        }

        /// An id as a server makes one, with its length in the first octet. `None` if the parts have other lengths than they
        /// were given, or [`check`](Self::check) refuses them.
        #[must_use]
        pub fn encode(&self, server_id: &[u8], nonce: &[u8]) -> Option<Vec<u8>> {
            self.check().ok()?;
            let lengths = (server_id.len(), nonce.len());
            if lengths != (self.server_id_length.into(), self.nonce_length.into()) {
                return None;
            }
            let plain = [server_id, nonce].concat();
            let cipher = match &self.key {
                None => plain,
                Some(key) => match <[u8; 16]>::try_from(plain.as_slice()) {
                    Ok(block) => bytes(aes::encrypt(&aes::encryption(key), numbers(&block))).to_vec(),
                    Err(_) => four_passes(key, &plain),
                },
            };
            let mut id = vec![self.config << 5 | cipher.len() as u8];
            id.extend(cipher);
            Some(id)
        }
    }

    /// Section 5.4.2.2 of the draft, in its own words and bytes: nothing of it is shared with the reader.
    fn four_passes(key: &[u8; 16], plain: &[u8]) -> Vec<u8> {
        let (keys, length) = (aes::encryption(key), plain.len());
        let (half, odd) = (length.div_ceil(2), length % 2 == 1);
        let mut left = plain[..half].to_vec();
        let mut right = plain[length - half..].to_vec();
        let clear = |left: &mut Vec<u8>, right: &mut Vec<u8>| {
            if odd {
                left[half - 1] &= 0xf0;
                right[0] &= 0x0f;
            }
        };
        clear(&mut left, &mut right);
        for pass in 1..=4 {
            let (from, to) = if pass % 2 == 1 { (&left, &mut right) } else { (&right, &mut left) };
            let mut block = [0u8; 16];
            block[..half].copy_from_slice(from);
            (block[14], block[15]) = (length as u8, pass);
            let cipher = bytes(aes::encrypt(&keys, numbers(&block)));
            to.iter_mut().zip(cipher).for_each(|(byte, with)| *byte ^= with);
            clear(&mut left, &mut right);
        }
        if odd {
            left[half - 1] |= right.remove(0);
        }
        left.extend(right);
        left
    }

    fn numbers<const N: usize, const M: usize>(bytes: &[u8; N]) -> [u32; M] {
        let (words, _) = bytes.as_chunks::<4>();
        std::array::from_fn(|i| words.get(i).map_or(0, |word| u32::from_be_bytes(*word)))
    }

    fn bytes(block: Block) -> [u8; 16] {
        let words = block.map(u32::to_be_bytes);
        std::array::from_fn(|i| words[i / 4][i % 4])
    }
}

const _: () = {
    assert!(size_of::<Config>().is_multiple_of(8) && size_of::<Query>() == 32);
    assert!(size_of::<ServerKey>() == 24 && size_of::<Server>() == 8);
    assert!(QuicId::SIZE == MAX_ID && LongHeader::SIZE == 6);
};

#[cfg(test)]
mod tests;
