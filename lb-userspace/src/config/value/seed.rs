//! The seed of the hashes.

use std::fmt;
use std::str::FromStr;

use super::textual;
use crate::config::{Code, Invalid};

/// 128 bits that key every hash; the same on every balancer of a fleet, and a secret: who knows it can aim at one backend.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Seed(pub [u8; 16]);

impl fmt::Debug for Seed {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Seed(secret)")
    }
}

impl fmt::Display for Seed {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(out, "{byte:02x}"))
    }
}

impl FromStr for Seed {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        // The text is a secret, or nearly one: it is not repeated in the message.
        let refused = |why: String| Invalid::new(Code::BadSeed, "the hash seed cannot be used", why);
        if let Some(other) = text.chars().find(|c| !c.is_ascii_hexdigit()) {
            return Err(refused(format!("`{}` is not a hexadecimal digit", other.escape_debug())));
        }
        if text.len() != 32 {
            return Err(refused(format!("it has {} digits, expected 32", text.len()))
                .help("`openssl rand -hex 16` makes one"));
        }
        let seed = u128::from_str_radix(text, 16).map_err(|error| refused(error.to_string()))?;
        Ok(Self(seed.to_be_bytes()))
    }
}

textual!(Seed, "32 hexadecimal digits", { "type": "string", "pattern": "^[0-9A-Fa-f]{32}$" });

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_read_byte_by_byte_and_written_back() {
        let text = "00112233445566778899aabbccddeeff";
        let seed: Seed = text.parse().unwrap();
        assert_eq!((seed.0[0], seed.0[1], seed.0[15]), (0x00, 0x11, 0xff));
        assert_eq!(seed.to_string(), text);
        assert_eq!(format!("{seed:?}"), "Seed(secret)");
    }

    #[test]
    fn a_seed_has_thirty_two_hexadecimal_digits() {
        for bad in [
            "",
            "0011",
            "+0112233445566778899aabbccddeeff",
            "0x112233445566778899aabbccddeeff",
            &"0".repeat(33),
        ] {
            assert_eq!(bad.parse::<Seed>().unwrap_err().code, Code::BadSeed, "{bad}");
        }
    }
}
