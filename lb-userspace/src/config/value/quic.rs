//! What connection ids are read by.

use std::fmt;
use std::str::FromStr;

use lb_common::quic::MAX_SERVER_ID;

use super::textual;
use crate::config::{Code, Invalid};

/// A key of AES-128: who knows it sees which server a connection is with.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct QuicKey(pub [u8; 16]);

impl fmt::Debug for QuicKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("QuicKey(secret)")
    }
}

impl fmt::Display for QuicKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        digits(&self.0, out)
    }
}

impl FromStr for QuicKey {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        // The text is a secret, or nearly one: it is not repeated in the message.
        let refused = |why: String| Invalid::new(Code::BadQuicKey, "the key cannot be used", why);
        if let Some(other) = text.chars().find(|c| !c.is_ascii_hexdigit()) {
            return Err(refused(format!("`{}` is not a hexadecimal digit", other.escape_debug())));
        }
        if text.len() != 32 {
            return Err(refused(format!("it has {} digits, expected 32", text.len()))
                .help("`openssl rand -hex 16` makes one"));
        }
        let key = u128::from_str_radix(text, 16).map_err(|error| refused(error.to_string()))?;
        Ok(Self(key.to_be_bytes()))
    }
}

textual!(QuicKey, "32 hexadecimal digits", { "type": "string", "pattern": "^[0-9A-Fa-f]{32}$" });

/// What a server calls itself in the connection ids that it gives out.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerId(Box<[u8]>);

impl ServerId {
    /// 1 to 15 of them.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for ServerId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "ServerId({self})")
    }
}

impl fmt::Display for ServerId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        digits(&self.0, out)
    }
}

impl FromStr for ServerId {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let refused = |why: String| Invalid::new(Code::BadServerId, format!("{text:?} is no server id"), why);
        if let Some(other) = text.chars().find(|c| !c.is_ascii_hexdigit()) {
            return Err(refused(format!("`{}` is not a hexadecimal digit", other.escape_debug()))
                .help("a server id is written byte by byte: \"0a\" is one byte, \"0a01\" two"));
        }
        if text.is_empty() || text.len() % 2 == 1 || text.len() > 2 * MAX_SERVER_ID {
            return Err(refused(format!(
                "it has {} digits, expected two for each of 1 to {MAX_SERVER_ID} bytes",
                text.len()
            )));
        }
        let byte = |at| u8::from_str_radix(&text[at..at + 2], 16);
        let bytes: Result<Box<[u8]>, _> = (0..text.len()).step_by(2).map(byte).collect();
        bytes.map(Self).map_err(|error| refused(error.to_string()))
    }
}

textual!(ServerId, "the hexadecimal digits of a server id", {
    "type": "string", "pattern": "^([0-9A-Fa-f]{2}){1,15}$"
});

fn digits(bytes: &[u8], out: &mut fmt::Formatter<'_>) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(out, "{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_ids_are_read_byte_by_byte_and_written_back() {
        for (text, bytes) in [("00", &[0][..]), ("0A01", &[10, 1]), (&"ff".repeat(15), &[255; 15])] {
            let id: ServerId = text.parse().unwrap();
            assert_eq!(id.bytes(), bytes);
            assert_eq!(id.to_string(), text.to_lowercase());
        }
        for bad in ["", "0", "0a1", "0x01", "+1", &"00".repeat(16), "é"] {
            assert_eq!(bad.parse::<ServerId>().unwrap_err().code, Code::BadServerId, "{bad}");
        }
    }

    #[test]
    fn a_key_has_thirty_two_hexadecimal_digits_and_is_not_shown() {
        let key: QuicKey = "00112233445566778899aabbccddeeff".parse().unwrap();
        assert_eq!((key.0[0], key.0[1], key.0[15]), (0, 0x11, 0xff));
        assert_eq!(format!("{key:?}"), "QuicKey(secret)");
        for bad in ["", "0011", &"0".repeat(33), "0x112233445566778899aabbccddeeff"] {
            let refused = bad.parse::<QuicKey>().unwrap_err();
            assert_eq!(refused.code, Code::BadQuicKey, "{bad}");
            assert!(bad.len() < 4 || !format!("{refused:?}").contains(bad));
        }
    }
}
