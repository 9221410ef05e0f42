//! The configuration: TOML in, a type that cannot hold a mistake out.
//!
//! `text -> nodes with places -> drafts -> rules -> Config`. `keys` lists every table and key once; `read` reads them
//! and goes on after a mistake; `rules` checks what must hold between values; `report` shows what was found. The JSON
//! form of a [`Config`] has the keys of the file and goes the same way, so that nothing enters unchecked.

mod discovery;
mod health;
mod keys;
mod passive;
mod protection;
mod quic;
mod read;
mod report;
mod rollout;
mod rules;
mod schema;
mod value;

use std::fmt;
use std::path::{Path, PathBuf};
use std::{fs, io};

use serde::{Deserialize, Deserializer};
use sha2::{Digest, Sha256};

pub use discovery::{Discovery, Dns, Http, Kubernetes, Record, Source, SourceKind, WhenEmpty, read_backends};
pub use health::{AgentCheck, Exchange, GrpcRequest, Health, HealthCheck, HttpRequest, Probe, Question, Tls};
pub use keys::{Backend, Config, Dataplane, Pool, Service, SlowStart};
pub use passive::{Breaker, BreakerScope, Limits, OnTrip, Outlier, Retry, SteerBy, Steering};
pub use protection::Protection;
pub use quic::{Quic, QuicConfig};
pub use read::Invalid;
pub use report::{
    Code, Diagnostic, Diagnostics, Label, Position, Report, Severity, Spot, Style, UnknownCode,
};
pub use rollout::{AnalysisMode, OnNoData, Preset, Rollout, RolloutMetric, RolloutStep};
pub use schema::json_schema;
pub use value::{
    AdminState, Aggression, BackendKey, Check, CommandLine, Deviations, DnsName, FilePath, HttpHost,
    HttpPath, HttpUrl, InterfaceName, Least, Mode, NameServer, OnDown, OnEmpty, Payload, Percent, Phrase,
    PoolName, PortRange, Protocol, QuicKey, Schema, Seed, ServerId, ServiceName, SplitKey, StatusRanges,
    TableSize, TlsName, Tracking, Verify, Via, Weight, XdpMode,
};

use keys::{ConfigDraft, ServiceDraft};
use read::{Findings, Kind, Node, Place, Table};

/// A configuration that can be used, and what is doubtful about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// What was read.
    pub config: Config,
    /// Warnings only.
    pub warnings: Diagnostics,
}

/// Why a file gave no configuration.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file could not be read.
    #[error("cannot read the configuration {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It was read, and has mistakes.
    #[error(transparent)]
    Invalid(#[from] Diagnostics),
}

/// Reads a file.
///
/// # Errors
/// If it cannot be read or has mistakes, all of which are in the error.
pub fn load(path: impl AsRef<Path>) -> Result<Loaded, LoadError> {
    let path = path.as_ref();
    let text =
        fs::read_to_string(path).map_err(|source| LoadError::Read { path: path.to_owned(), source })?;
    Ok(parse(&text, &path.display().to_string())?)
}

/// Reads a text; `name` is what messages call it.
///
/// # Errors
/// If it has mistakes; the error has all of them, and the warnings too.
pub fn parse(text: &str, name: &str) -> Result<Loaded, Diagnostics> {
    let mut findings = Findings::default();
    let root = Node::of_toml(text, &mut findings);
    let draft = ConfigDraft::read(&root, &mut findings);
    drop(root);
    if let Some(draft) = &draft
        && !findings.is_partial()
    {
        rules::check(draft, &mut findings);
    }
    let failed = findings.any_error();
    let found = Diagnostics::new(name, text, findings.list);
    match draft.and_then(Config::finish) {
        Some(config) if !failed => Ok(Loaded { config, warnings: found }),
        _ => Err(found),
    }
}

impl Config {
    /// As a file: every key, defaults included. [`parse`] reads it back as it was.
    ///
    /// # Errors
    /// None that is known: every value has a form in TOML.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        toml::to_string(self)
    }
}

impl Service {
    /// SHA-256 of the canonical JSON: two services have the same one if and only if they say the same.
    pub fn hash(&self) -> ContentHash {
        let mut hasher = Sha256::new();
        // Writing into a hasher cannot fail, and no value is a map with keys that are not text.
        let written = serde_json::to_writer(Sink(&mut hasher), self);
        debug_assert!(written.is_ok(), "{written:?}");
        ContentHash(hasher.finalize().into())
    }

    /// How many slots its tables take: one table for the stable pool, and one for the canary if there is a second pool.
    pub fn slots(&self) -> u32 {
        slots_of(self.table_size, self.pools.len())
    }
}

fn slots_of(size: TableSize, pools: usize) -> u32 {
    size.get() * if pools > 1 { 2 } else { 1 }
}

/// What a service's configuration is known by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentHash(pub [u8; 32]);

impl fmt::Display for ContentHash {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(out, "{byte:02x}"))
    }
}

struct Sink<'a>(&'a mut Sha256);

impl io::Write for Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'de> Deserialize<'de> for Config {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        checked::<Self, D>(from, rules::check)
    }
}

/// By itself: whether it goes together with other services is checked where the whole [`Config`] is read.
impl<'de> Deserialize<'de> for Service {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        checked::<Self, D>(from, |draft: &ServiceDraft, findings| rules::check_service(draft, findings))
    }
}

/// By itself, as it stands in a service that is complete: with its port.
impl<'de> Deserialize<'de> for Backend {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        checked::<Self, D>(from, |_, _| {})
    }
}

fn checked<'de, K: Kind, D: Deserializer<'de>>(
    from: D,
    rules: impl Fn(&K::Draft, &mut Findings),
) -> Result<K::Value, D::Error> {
    let node = Node::of_json(serde_json::Value::deserialize(from)?, Place::default());
    let mut findings = Findings::default();
    let draft = K::read(&node, &mut findings).inspect(|draft| rules(draft, &mut findings));
    let failed = findings.any_error();
    match draft.and_then(K::finish) {
        Some(value) if !failed => Ok(value),
        _ => {
            let errors = findings.list.iter().filter(|found| found.severity() == Severity::Error);
            let errors: Vec<String> = errors.map(ToString::to_string).collect();
            Err(serde::de::Error::custom(errors.join("\n")))
        }
    }
}
