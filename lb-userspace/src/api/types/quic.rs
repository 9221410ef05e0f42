//! Connection ids of QUIC.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A connection id, as its digits.
#[derive(Clone, PartialEq, Eq)]
pub struct ConnectionId(Vec<u8>);

/// Text that is no connection id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a connection id is 1 to {MOST} bytes, two hexadecimal digits each")]
pub struct NoConnectionId;

/// As long as one of QUIC version 1 may be (RFC 9000, section 17.2).
const MOST: usize = lb_common::quic::MAX_ID;

impl ConnectionId {
    /// 1 to 20 of them.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl FromStr for ConnectionId {
    type Err = NoConnectionId;

    fn from_str(text: &str) -> Result<Self, NoConnectionId> {
        let digits = text.as_bytes();
        let is_hex = digits.iter().all(u8::is_ascii_hexdigit);
        if !is_hex || digits.is_empty() || digits.len() % 2 == 1 || digits.len() > 2 * MOST {
            return Err(NoConnectionId);
        }
        let byte = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).map_err(|_| NoConnectionId);
        (0..digits.len()).step_by(2).map(byte).collect::<Result<_, _>>().map(Self)
    }
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(out, "{byte:02x}"))
    }
}

impl fmt::Debug for ConnectionId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "ConnectionId({self})")
    }
}

impl Serialize for ConnectionId {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ConnectionId {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Cow::<str>::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for ConnectionId {
    fn schema_name() -> Cow<'static, str> {
        "ConnectionId".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A connection id of QUIC, two hexadecimal digits a byte.",
            "type": "string",
            "pattern": "^([0-9A-Fa-f]{2}){1,20}$",
            "examples": ["07c4605e4504cc4f"]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_id_is_read_byte_by_byte_and_written_back() {
        let id: ConnectionId = serde_json::from_str("\"07C4605e4504cc4f\"").unwrap();
        assert_eq!(id.bytes(), [0x07, 0xc4, 0x60, 0x5e, 0x45, 0x04, 0xcc, 0x4f]);
        assert_eq!(serde_json::to_string(&id).unwrap(), "\"07c4605e4504cc4f\"");
        for bad in ["", "0", "0x", "é0", &"00".repeat(21)] {
            assert!(bad.parse::<ConnectionId>().is_err(), "{bad}");
        }
    }
}
