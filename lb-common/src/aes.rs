//! AES-128 (FIPS 197), a block at a time, with nothing but tables: what BPF can do of it.
//!
//! A round is sixteen look-ups in tables that hold S-box and column mixing together, as in the cipher's first publications.
//! BPF has neither the processor's instructions for it nor, before Linux 6.10, the kernel's own code. Tables make time depend
//! on key and data; what hangs on the key here is that observers cannot tell which server a connection id names
//! ([`quic`](crate::quic)), not the secrecy of anything that is sent.

/// Round keys, of one direction.
pub type Schedule = [u32; 44];

/// A block: its bytes as four big-endian numbers.
pub type Block = [u32; 4];

const ROUNDS: usize = 10;

static ENCRYPT: [[u32; 256]; 4] = columns(&SBOX, [2, 1, 1, 3]);
static DECRYPT: [[u32; 256]; 4] = columns(&INVERSE, [14, 9, 13, 11]);
static LAST_ENCRYPT: [u8; 256] = SBOX;
static LAST_DECRYPT: [u8; 256] = INVERSE;

/// Encrypts a block with the round keys of [`encryption`].
#[must_use]
#[inline(always)]
pub fn encrypt(keys: &Schedule, block: Block) -> Block {
    let mut s = add(block, keys, 0);
    let mut round = 1;
    while round < ROUNDS {
        let t = [
            mixed(&ENCRYPT, s[0], s[1], s[2], s[3]),
            mixed(&ENCRYPT, s[1], s[2], s[3], s[0]),
            mixed(&ENCRYPT, s[2], s[3], s[0], s[1]),
            mixed(&ENCRYPT, s[3], s[0], s[1], s[2]),
        ];
        s = add(t, keys, round);
        round += 1;
    }
    let t = [
        last(&LAST_ENCRYPT, s[0], s[1], s[2], s[3]),
        last(&LAST_ENCRYPT, s[1], s[2], s[3], s[0]),
        last(&LAST_ENCRYPT, s[2], s[3], s[0], s[1]),
        last(&LAST_ENCRYPT, s[3], s[0], s[1], s[2]),
    ];
    add(t, keys, ROUNDS)
}

/// Decrypts a block with the round keys of [`decryption`].
#[must_use]
#[inline(always)]
pub fn decrypt(keys: &Schedule, block: Block) -> Block {
    let mut s = add(block, keys, 0);
    let mut round = 1;
    while round < ROUNDS {
        let t = [
            mixed(&DECRYPT, s[0], s[3], s[2], s[1]),
            mixed(&DECRYPT, s[1], s[0], s[3], s[2]),
            mixed(&DECRYPT, s[2], s[1], s[0], s[3]),
            mixed(&DECRYPT, s[3], s[2], s[1], s[0]),
        ];
        s = add(t, keys, round);
        round += 1;
    }
    let t = [
        last(&LAST_DECRYPT, s[0], s[3], s[2], s[1]),
        last(&LAST_DECRYPT, s[1], s[0], s[3], s[2]),
        last(&LAST_DECRYPT, s[2], s[1], s[0], s[3]),
        last(&LAST_DECRYPT, s[3], s[2], s[1], s[0]),
    ];
    add(t, keys, ROUNDS)
}

/// The round keys for [`encrypt`] (FIPS 197, section 5.2).
#[must_use]
pub fn encryption(key: &[u8; 16]) -> Schedule {
    let mut keys = [0; 44];
    for (word, bytes) in keys.iter_mut().zip(key.as_chunks::<4>().0) {
        *word = u32::from_be_bytes(*bytes);
    }
    let mut constant = 1u8;
    for i in 4..keys.len() {
        let mut word = keys[i - 1];
        if i % 4 == 0 {
            word =
                word.rotate_left(8).to_be_bytes().iter().fold(0, |word, byte| word << 8 | substitute(*byte))
                    ^ u32::from(constant) << 24;
            constant = double(constant);
        }
        keys[i] = keys[i - 4] ^ word;
    }
    keys
}

/// The round keys for [`decrypt`]: in the order in which they are used, the inner ones mixed (section 5.3.5).
#[must_use]
pub fn decryption(key: &[u8; 16]) -> Schedule {
    let forward = encryption(key);
    let mut keys = [0; 44];
    for (i, word) in keys.iter_mut().enumerate() {
        let from = forward[(ROUNDS - i / 4) * 4 + i % 4];
        let is_inner = (4..40).contains(&i);
        *word = if is_inner {
            from.to_be_bytes()
                .iter()
                .zip(&DECRYPT)
                .fold(0, |word, (byte, column)| word ^ column[SBOX[usize::from(*byte)] as usize])
        } else {
            from
        };
    }
    keys
}

fn substitute(byte: u8) -> u32 {
    u32::from(SBOX[usize::from(byte)])
}

#[inline(always)]
const fn add(block: Block, keys: &Schedule, round: usize) -> Block {
    [
        block[0] ^ keys[round * 4],
        block[1] ^ keys[round * 4 + 1],
        block[2] ^ keys[round * 4 + 2],
        block[3] ^ keys[round * 4 + 3],
    ]
}

/// A column of the next state, from a byte of each of four columns.
#[inline(always)]
const fn mixed(tables: &[[u32; 256]; 4], a: u32, b: u32, c: u32, d: u32) -> u32 {
    tables[0][(a >> 24) as usize]
        ^ tables[1][(b >> 16 & 0xff) as usize]
        ^ tables[2][(c >> 8 & 0xff) as usize]
        ^ tables[3][(d & 0xff) as usize]
}

/// The same in the last round, which does not mix.
#[inline(always)]
const fn last(table: &[u8; 256], a: u32, b: u32, c: u32, d: u32) -> u32 {
    (table[(a >> 24) as usize] as u32) << 24
        | (table[(b >> 16 & 0xff) as usize] as u32) << 16
        | (table[(c >> 8 & 0xff) as usize] as u32) << 8
        | table[(d & 0xff) as usize] as u32
}

/// Substitution and column mixing of a byte, for each place in its column.
const fn columns(substitution: &[u8; 256], factors: [u8; 4]) -> [[u32; 256]; 4] {
    let mut tables = [[0; 256]; 4];
    let mut i = 0;
    while i < 256 {
        let s = substitution[i];
        let column = u32::from_be_bytes([
            times(s, factors[0]),
            times(s, factors[1]),
            times(s, factors[2]),
            times(s, factors[3]),
        ]);
        tables[0][i] = column;
        tables[1][i] = column.rotate_right(8);
        tables[2][i] = column.rotate_right(16);
        tables[3][i] = column.rotate_right(24);
        i += 1;
    }
    tables
}

/// Section 5.1.1: the inverse in GF(2^8), and an affine map of it.
const SBOX: [u8; 256] = {
    let mut table = [0x63; 256];
    // 3 generates all of the field but 0: `q` goes through the inverses of `p`.
    let (mut p, mut q) = (1u8, 1u8);
    loop {
        p ^= double(p);
        q ^= q << 1;
        q ^= q << 2;
        q ^= q << 4;
        q ^= if q & 0x80 != 0 { 0x09 } else { 0 };
        let spread = q ^ q.rotate_left(1) ^ q.rotate_left(2) ^ q.rotate_left(3) ^ q.rotate_left(4);
        table[p as usize] = spread ^ 0x63;
        if p == 1 {
            break table;
        }
    }
};

const INVERSE: [u8; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        table[SBOX[i] as usize] = i as u8;
        i += 1;
    }
    table
};

const fn double(a: u8) -> u8 {
    a << 1 ^ if a & 0x80 != 0 { 0x1b } else { 0 }
}

const fn times(mut a: u8, mut b: u8) -> u8 {
    let mut product = 0;
    while b != 0 {
        if b & 1 != 0 {
            product ^= a;
        }
        a = double(a);
        b >>= 1;
    }
    product
}

#[cfg(test)]
mod tests {
    use proptest::array::{uniform4, uniform16};
    use proptest::prelude::*;

    use super::*;
    use crate::testing::cases;

    const fn block(number: u128) -> Block {
        [(number >> 96) as u32, (number >> 64) as u32, (number >> 32) as u32, number as u32]
    }

    #[test]
    fn the_standards_examples_come_out() {
        // FIPS 197, appendixes B and C.1; and two of the round keys of appendix A.1.
        for (key, plain, cipher) in [
            (
                0x2b7e_1516_28ae_d2a6_abf7_1588_09cf_4f3c_u128,
                0x3243_f6a8_885a_308d_3131_98a2_e037_0734,
                0x3925_841d_02dc_09fb_dc11_8597_196a_0b32,
            ),
            (
                0x0001_0203_0405_0607_0809_0a0b_0c0d_0e0f,
                0x0011_2233_4455_6677_8899_aabb_ccdd_eeff,
                0x69c4_e0d8_6a7b_0430_d8cd_b780_70b4_c55a,
            ),
        ] {
            let key = key.to_be_bytes();
            assert_eq!(encrypt(&encryption(&key), block(plain)), block(cipher));
            assert_eq!(decrypt(&decryption(&key), block(cipher)), block(plain));
        }
        let keys = encryption(&0x2b7e_1516_28ae_d2a6_abf7_1588_09cf_4f3c_u128.to_be_bytes());
        assert_eq!((keys[4], keys[43]), (0xa0fa_fe17, 0xb663_0ca6));
    }

    proptest! {
        #![proptest_config(cases(1000))]

        #[test]
        fn what_is_encrypted_can_be_decrypted(key in uniform16(any::<u8>()), plain in uniform4(any::<u32>())) {
            let cipher = encrypt(&encryption(&key), plain);
            prop_assert_ne!(cipher, plain);
            prop_assert_eq!(decrypt(&decryption(&key), cipher), plain);
        }
    }
}
