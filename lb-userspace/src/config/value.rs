//! The values of the configuration: each is right by its type.

mod addresses;
mod checks;
mod http;
mod names;
mod numbers;
mod policy;
mod ports;
mod quic;
mod seed;
mod shares;
mod sources;
mod times;
mod words;

pub(super) use addresses::{Endpoint, Prefix, Prefix4, Prefix6, Target, Unicast};
pub use checks::{CommandLine, FilePath, Payload, Phrase, TlsName};
pub use http::{HttpHost, HttpPath, StatusRanges};
pub use names::{InterfaceName, PoolName, ServiceName};
pub(super) use numbers::{Count, Port};
pub use numbers::{Percent, Schema, TableSize, Weight};
pub use policy::{Aggression, Deviations, Least};
pub use ports::PortRange;
pub use quic::{QuicKey, ServerId};
pub use seed::Seed;
pub use shares::{Factor, Number};
pub(super) use shares::{Multiple, Text, Truth};
pub use sources::{DnsName, HttpUrl, NameServer};
pub(super) use times::Time;
pub use words::{
    AdminState, BackendKey, Check, Mode, OnDown, OnEmpty, Protocol, SplitKey, Tracking, Verify, Via, XdpMode,
};

/// Makes a scalar of a type whose text form is its [`FromStr`](std::str::FromStr) and `Display`, in the file and in JSON.
macro_rules! textual {
    ($name:ident, $expected:literal, $schema:tt) => {
        impl $crate::config::read::Scalar for $name {
            type Value = Self;

            fn parse(node: &$crate::config::read::Node) -> Result<Self, $crate::config::Invalid> {
                node.text($expected)?.parse()
            }

            fn write<S: serde::Serializer>(value: &Self, to: S) -> Result<S::Ok, S::Error> {
                to.collect_str(value)
            }

            fn schema() -> serde_json::Value {
                serde_json::json!($schema)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str> as serde::Deserialize>::deserialize(from)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

use textual;
