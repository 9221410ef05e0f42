//! A record: a line of the file, with a checksum of its own.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use crate::config::{Backend, Config, PoolName, Service, ServiceName};
use crate::state::{Author, Desired, Intent};

/// A change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Counts from 1: the agent's revision that the change makes.
    pub sequence: u64,
    /// When (RFC 3339).
    pub time: String,
    /// By whom.
    pub author: Author,
    /// Why, in the author's words.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
    /// What, in a sentence.
    pub summary: String,
    /// What.
    pub change: Change,
}

/// What has changed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// Another configuration.
    Config {
        /// All of it.
        config: Box<Config>,
        /// SHA-256 of the configuration file, if this is what it said. Until the file changes, what was applied since
        /// stands.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        file: Option<String>,
    },
    /// Something at run time.
    Service {
        /// The service.
        name: ServiceName,
        /// All that holds of it from now on.
        intent: Intent,
    },
    /// A service as it was at an earlier revision.
    Restore {
        /// The service.
        name: ServiceName,
        /// Its configuration; `None`: there was no such service.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        service: Option<Box<Service>>,
        /// What was decided at run time.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        intent: Option<Intent>,
    },
    /// Backends that a source has found for a pool: all that it knows.
    Discovered {
        /// The service.
        name: ServiceName,
        /// Its pool.
        pool: PoolName,
        /// By address.
        backends: Vec<Backend>,
    },
    /// What all the changes before had come to, in their place. Always the first record of its file.
    Base {
        /// What held then.
        desired: Box<Desired>,
        /// SHA-256 of the configuration file as it was last read.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        file: Option<String>,
    },
}

impl Change {
    /// Whether somebody has decided it, rather than found it out.
    pub const fn is_decided(&self) -> bool {
        match self {
            Self::Config { .. } | Self::Service { .. } | Self::Restore { .. } | Self::Base { .. } => true,
            Self::Discovered { .. } => false,
        }
    }
}

/// A line of the file.
#[derive(Serialize, Deserialize)]
struct Line<E> {
    sum: String,
    entry: E,
}

/// What a file holds.
pub(super) struct Contents {
    /// The good records from the beginning on.
    pub entries: Vec<Entry>,
    /// Where each of them ends, in bytes from the beginning of the file.
    pub ends: Vec<usize>,
    /// What comes after them, unless it is nothing or a record that a crash has torn.
    pub fault: Option<Fault>,
}

/// A record that is not what was written.
#[derive(Debug)]
pub(super) struct Fault {
    /// Its line; counts from 1.
    pub line: usize,
    /// What is wrong with it.
    pub problem: String,
}

impl Contents {
    /// How many bytes the good records take.
    pub fn good(&self) -> usize {
        self.ends.last().copied().unwrap_or(0)
    }

    /// Reads a file. Only the last line may be torn: it is one that does not end.
    pub fn of(bytes: &[u8]) -> Self {
        let mut contents = Self { entries: Vec::new(), ends: Vec::new(), fault: None };
        for (number, line) in bytes.split_inclusive(|&byte| byte == b'\n').enumerate() {
            let offset = contents.good();
            let is_last = offset + line.len() == bytes.len();
            let fault = |problem| Some(Fault { line: number + 1, problem });
            match decode(line) {
                Ok(entry) => {
                    let before = contents.entries.last().map(|last| last.sequence);
                    if let Some(before) = before
                        && entry.sequence != before + 1
                    {
                        contents.fault = fault(format!("record {} follows record {before}", entry.sequence));
                        break;
                    }
                    contents.entries.push(entry);
                    contents.ends.push(offset + line.len());
                }
                Err(_) if is_last && !line.ends_with(b"\n") => break,
                Err(problem) => {
                    contents.fault = fault(problem);
                    break;
                }
            }
        }
        contents
    }
}

/// The records among some lines that are what was written.
pub(super) fn legible(bytes: &[u8]) -> Vec<Entry> {
    bytes.split_inclusive(|&byte| byte == b'\n').filter_map(|line| decode(line).ok()).collect()
}

/// A record as its line.
pub(super) fn encode(entry: &Entry) -> serde_json::Result<String> {
    let entry = serde_json::to_string(entry)?;
    let sum = checksum(entry.as_bytes());
    Ok(format!("{{\"sum\":\"{sum}\",\"entry\":{entry}}}\n"))
}

fn decode(line: &[u8]) -> Result<Entry, String> {
    let Some(line) = line.strip_suffix(b"\n") else { return Err("the line does not end".to_owned()) };
    let line: Line<Box<RawValue>> = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    if checksum(line.entry.get().as_bytes()) != line.sum {
        return Err("its checksum is wrong".to_owned());
    }
    serde_json::from_str(line.entry.get()).map_err(|error| error.to_string())
}

/// The first 64 bits of SHA-256, in hexadecimal.
fn checksum(bytes: &[u8]) -> String {
    Sha256::digest(bytes)[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}
