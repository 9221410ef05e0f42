//! The keyed hashes of a flow.
//!
//! NH, the universal hash under UMAC (RFC 4418, section 5.2): each pair of 32-bit words is added to a pair of key words and
//! multiplied, and the products are summed modulo 2^64. Two flows collide with probability 2^-32 over the choice of keys. A
//! finaliser (MurmurHash3's `fmix64`) then spreads every input bit over the whole result, so that any 32 of its bits may be
//! used. Three multiplications and a finaliser cost about 3 ns in the kernel, with nothing wider than 64 bits, which is what
//! BPF has.
//!
//! The keys are secret and derived from the fleet's seed and the service's own address, port and protocol
//! ([`Keys::derive`]): who does not know them cannot aim at one backend, two services do not put the same clients together,
//! and every balancer with the same seed agrees.

use bytemuck::{Pod, Zeroable};

use crate::abi::{Address, VipKey};

/// The seed of a fleet: 128 secret bits.
pub type Seed = [u8; 16];

/// Key words of one hash.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Keys([u32; 6]);

/// What the keys of a service are for; part of their derivation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Which backend of the pool.
    Backend,
    /// Which pool. The salt changes with each rollout, so that not the same clients are always the first to be tried on.
    Split {
        /// Any number that the balancers of a fleet agree on.
        salt: u64,
    },
    /// Which slots a backend prefers.
    Table,
}

impl Keys {
    /// The keys of `service` for one purpose.
    #[must_use]
    pub fn derive(seed: &Seed, service: &VipKey, purpose: Purpose) -> Self {
        let (tag, salt) = match purpose {
            Purpose::Backend => (1, 0),
            Purpose::Split { salt } => (2, salt),
            Purpose::Table => (3, 0),
        };
        let [a, b, c, d] = service.address.words();
        let mut state = 0u64;
        let halves = [seed.first_chunk::<8>(), seed.last_chunk::<8>()];
        for half in halves.into_iter().flatten() {
            state = absorb(state, u64::from_le_bytes(*half));
        }
        state = absorb(state, tag);
        state = absorb(state, salt);
        state = absorb(state, u64::from(a) << 32 | u64::from(b));
        state = absorb(state, u64::from(c) << 32 | u64::from(d));
        state = absorb(state, u64::from(service.port.number()) << 8 | u64::from(service.protocol));
        let mut keys = [0u32; 6];
        for (i, key) in keys.iter_mut().enumerate() {
            *key = (absorb(state, i as u64 + 1) >> 32) as u32;
        }
        // An odd factor keeps a product injective in the other one: v4 clients differ in one word only, and so do ports.
        keys[2] &= !1; // 0xffff (the third word of every v4-mapped address) + an even key
        keys[5] |= 1;
        Self(keys)
    }

    /// Hashes an address and a pair of ports.
    #[must_use]
    #[inline(always)]
    pub fn hash(&self, address: [u32; 4], ports: u32) -> u64 {
        let k = &self.0;
        let pair = |x: u32, i: u32, y: u32, j: u32| {
            u64::wrapping_mul(u64::from(x.wrapping_add(i)), u64::from(y.wrapping_add(j)))
        };
        mix(pair(address[0], k[0], address[1], k[1])
            .wrapping_add(pair(address[2], k[2], address[3], k[3]))
            .wrapping_add(u64::from(ports.wrapping_add(k[4])).wrapping_mul(u64::from(k[5]))))
    }

    /// Hashes the address and port of a backend: its place in every table, whatever its position in a list.
    #[must_use]
    pub fn backend(&self, address: Address, port: u16) -> u64 {
        self.hash(address.words(), u32::from(port))
    }
}

/// `fmix64` of MurmurHash3: a bijection whose output bits each depend on every input bit.
#[must_use]
#[inline(always)]
pub const fn mix(mut x: u64) -> u64 {
    x ^= x >> 33;
    x = x.wrapping_mul(0xff51_afd7_ed55_8ccd);
    x ^= x >> 33;
    x = x.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    x ^ (x >> 33)
}

const fn absorb(state: u64, word: u64) -> u64 {
    mix(mix(state ^ word).wrapping_add(0x9e37_79b9_7f4a_7c15))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::IPPROTO_TCP;
    use core::net::Ipv4Addr;
    use std::collections::HashSet;

    const SEED: Seed = *b"0123456789abcdef";

    fn service(last: u8) -> VipKey {
        VipKey::new(Ipv4Addr::new(203, 0, 113, last).into(), 443, IPPROTO_TCP)
    }

    fn clients(n: u32) -> impl Iterator<Item = [u32; 4]> {
        (0..n).map(|i| Address::from(Ipv4Addr::from_bits(0x0a00_0000 + i)).words())
    }

    #[test]
    #[cfg_attr(miri, ignore = "statistics")]
    fn neighbouring_clients_spread_evenly() {
        for seed in 0..20u8 {
            let keys = Keys::derive(&[seed; 16], &service(10), Purpose::Split { salt: 7 });
            let share = 0x1_0000_0000u64 / 100;
            let n = 100_000;
            let inside = clients(n).filter(|&c| keys.hash(c, 0) >> 32 < share).count() as f64;
            let sigma = (f64::from(n) * 0.01 * 0.99).sqrt();
            assert!((inside - 1000.0).abs() < 4.0 * sigma, "seed {seed}: {inside} of {n} at 1 %");
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "statistics")]
    fn both_halves_are_free_of_collisions_beyond_chance() {
        let keys = Keys::derive(&SEED, &service(10), Purpose::Backend);
        for shift in [0, 32] {
            let distinct: HashSet<u32> =
                clients(1 << 16).map(|c| (keys.hash(c, 0x1234_01bb) >> shift) as u32).collect();
            // The birthday bound gives half a collision among 2^16 of 2^32.
            assert!(distinct.len() >= (1 << 16) - 4, "{} distinct", distinct.len());
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "statistics")]
    fn services_purposes_and_salts_are_independent() {
        let a = Keys::derive(&SEED, &service(10), Purpose::Backend);
        for other in [
            Keys::derive(&SEED, &service(11), Purpose::Backend),
            Keys::derive(&SEED, &service(10), Purpose::Split { salt: 0 }),
            Keys::derive(&[0; 16], &service(10), Purpose::Backend),
        ] {
            let same = clients(10_000).filter(|&c| (a.hash(c, 0) ^ other.hash(c, 0)) >> 56 == 0).count();
            assert!((10..100).contains(&same), "expected about 39 of 10000 equal bytes, found {same}");
        }
        let salted = |salt| Keys::derive(&SEED, &service(10), Purpose::Split { salt });
        assert_ne!(salted(1), salted(2));
    }

    #[test]
    fn the_hash_is_a_contract_between_balancers() {
        // A change of these numbers moves every flow of every fleet that is upgraded one balancer at a time.
        let keys = Keys::derive(&SEED, &service(10), Purpose::Backend);
        let client = Address::from(Ipv4Addr::new(192, 0, 2, 1)).words();
        assert_eq!(keys.hash(client, 40_000 << 16 | 443), 3_207_980_757_421_796_800);
    }
}
