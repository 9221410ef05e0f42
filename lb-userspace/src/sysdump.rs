//! `lbctl sysdump`: what a bug report needs, in one archive, without secrets.
//!
//! Each part is a file of its own, and says why where it could not be had. Every text goes through [`redact`] on its way in.

pub mod redact;

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use flate2::{Compression, write::GzEncoder};
use hyper::Uri;
use serde::Serialize;
use tokio::process::Command;

use crate::api::{Client, EventQuery, FlowQuery};
use crate::doctor;
use crate::web::Get;
use redact::Redactor;

/// Where things are.
#[derive(Clone, Debug)]
pub struct Places {
    /// What the doctor looks at.
    pub doctor: doctor::Places,
    /// Where the journal is.
    pub state: PathBuf,
    /// Where the metrics are, as host and port; `off`: nowhere.
    pub metrics: String,
}

/// One file of the archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its name in there.
    pub name: String,
    /// What is in it, without secrets.
    pub text: String,
}

/// More of a log or a journal than this is cut off at its beginning.
const LONGEST: usize = 4 << 20;
/// No program is waited for longer than this.
const PATIENCE: Duration = Duration::from_secs(10);
/// Tracked flows beyond these say nothing new.
const FLOWS: usize = 1_000;

/// Programs whose output tells what the host is like; those that are not installed are passed over.
const PROGRAMS: &[&[&str]] = &[
    &["uname", "-a"],
    &["ip", "-s", "-d", "link", "show"],
    &["ip", "-d", "addr", "show"],
    &["ip", "route", "show", "table", "all"],
    &["ip", "rule", "show"],
    &["ip", "neigh", "show"],
    &["nft", "list", "ruleset"],
    &["bpftool", "prog", "show"],
    &["bpftool", "net", "show"],
    &["systemctl", "show", "lbd"],
    &["journalctl", "-u", "lbd", "-n", "5000", "--no-pager", "-o", "short-iso"],
];

/// Files that tell the same.
const FILES: &[&str] = &[
    "/etc/os-release",
    "/proc/cmdline",
    "/proc/cpuinfo",
    "/proc/interrupts",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/net/dev",
    "/proc/net/snmp",
    "/proc/net/sockstat",
    "/proc/net/softnet_stat",
];

/// Collects everything. What the agent would have said is missing where there is none.
pub async fn collect(places: &Places) -> Vec<Part> {
    let facts = doctor::collect(&places.doctor).await;
    let config = fs::read_to_string(&places.doctor.config);
    let journal = fs::read(places.state.join("journal.jsonl"));
    let mut redactor = Redactor::default();
    // The seed that was drawn by the agent itself, wherever it turns up.
    for text in [&config].into_iter().flatten() {
        redactor.learn(text);
    }
    if let Ok(bytes) = &journal {
        redactor.learn(&String::from_utf8_lossy(bytes));
    }
    let mut parts = Parts { redactor, list: Vec::new() };
    parts.add("versions.txt", Ok(versions()));
    parts.json("doctor.json", Ok::<_, &String>(&doctor::judge(&facts)));
    parts.json("facts.json", Ok::<_, &String>(&facts));
    parts.add("lb.toml", config.map_err(|error| error.to_string()));
    let journal = journal.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    parts.add("journal.jsonl", journal.map_err(|error| error.to_string()));
    agent(&places.doctor.socket, &mut parts).await;
    parts.add("metrics.txt", metrics(&places.metrics).await);
    for path in FILES {
        let text = fs::read_to_string(path).map_err(|error| error.to_string());
        parts.add(&format!("files{path}"), text);
    }
    let links: Vec<Vec<&str>> = facts
        .links
        .keys()
        .flat_map(|name| ["-i", "-k", "-l", "-S"].map(|what| vec!["ethtool", what, name.as_str()]))
        .collect();
    let fixed = PROGRAMS.iter().map(|words| words.to_vec());
    for words in fixed.chain(links) {
        if let Some(output) = run(&words).await {
            parts.add(&format!("programs/{}.txt", words.join("_").replace('/', "-")), output);
        }
    }
    parts.list
}

async fn agent(socket: &Path, parts: &mut Parts) {
    let client = Client::new(socket).with_patience(PATIENCE);
    let status = client.status().await;
    let services: Vec<String> = match &status {
        Ok(status) => status.services.iter().map(|service| service.name.clone()).collect(),
        Err(_) => Vec::new(),
    };
    parts.json("agent/status.json", status.as_ref());
    let query = FlowQuery { service: None, limit: FLOWS };
    parts.json("agent/flows.json", client.flows(&query).await.as_ref());
    let mut events = String::new();
    if let Ok(mut stream) = client.events(&EventQuery::default()).await {
        while let Ok(Some(event)) = stream.next().await {
            events += &serde_json::to_string(&event).unwrap_or_default();
            events.push('\n');
        }
    }
    parts.add("agent/events.jsonl", Ok(events));
    for service in services {
        parts.json(&format!("agent/history-{service}.json"), client.history(&service).await.as_ref());
    }
}

fn versions() -> String {
    format!("lbctl {}\n", crate::version::text())
}

/// What the metrics' listener says.
async fn metrics(at: &str) -> Result<String, String> {
    /// More than that of a hundred thousand backends.
    const LIMIT: usize = 512 << 20;
    if at == "off" {
        return Err("lbd serves no metrics (LB_METRICS=off)".to_owned());
    }
    let uri: Uri = format!("http://{at}/metrics").parse().map_err(|error| format!("{at}: {error}"))?;
    let ask = Get { uri: &uri, agent: "lb-sysdump", ca_file: None, headers: Vec::new(), limit: LIMIT }.ask();
    match tokio::time::timeout(PATIENCE, ask).await {
        Ok(Ok(got)) if got.status.is_success() => Ok(String::from_utf8_lossy(&got.body).into_owned()),
        Ok(Ok(got)) => Err(format!("{at}: {}: {}", got.status, String::from_utf8_lossy(&got.body))),
        Ok(Err(error)) => Err(format!("{at}: {error}")),
        Err(_) => Err(format!("{at} did not answer within {PATIENCE:?}")),
    }
}

/// What a program prints; `None` if it is not installed.
async fn run(words: &[&str]) -> Option<Result<String, String>> {
    let (program, arguments) = words.split_first()?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    match tokio::time::timeout(PATIENCE, command.output()).await {
        Ok(Ok(output)) => {
            let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
            text += &String::from_utf8_lossy(&output.stderr);
            Some(Ok(text))
        }
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => None,
        Ok(Err(error)) => Some(Err(error.to_string())),
        Err(_) => Some(Err(format!("it did not end within {PATIENCE:?}"))),
    }
}

struct Parts {
    redactor: Redactor,
    list: Vec<Part>,
}

impl Parts {
    fn add(&mut self, name: &str, text: Result<String, String>) {
        // First: what is cut in two is not known for a secret any more.
        let text = self.redactor.text(&text.unwrap_or_else(|why| format!("(not there: {why})\n")));
        let mut from = text.len().saturating_sub(LONGEST);
        while !text.is_char_boundary(from) {
            from += 1;
        }
        self.list.push(Part { name: name.to_owned(), text: text[from..].to_owned() });
    }

    fn json<E: ToString>(&mut self, name: &str, document: Result<&impl Serialize, &E>) {
        let text = document
            .map_err(ToString::to_string)
            .and_then(|document| serde_json::to_string_pretty(document).map_err(|error| error.to_string()));
        self.add(name, text);
    }
}

/// Writes an archive whose files lie in the directory `root`.
///
/// # Errors
/// What the writer says.
pub fn archive(to: impl Write, root: &str, parts: &[Part]) -> io::Result<()> {
    let mut archive = tar::Builder::new(GzEncoder::new(to, Compression::default()));
    let now = jiff::Timestamp::now().as_second().unsigned_abs();
    for part in parts {
        let mut header = tar::Header::new_gnu();
        header.set_size(part.text.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(now);
        archive.append_data(&mut header, format!("{root}/{}", part.name), part.text.as_bytes())?;
    }
    archive.into_inner()?.finish()?.flush()
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[tokio::test]
    async fn a_dump_without_an_agent_has_what_the_host_says_and_no_secret() {
        const SEED: &str = "00112233445566778899aabbccddeeff";
        let home = tempfile::tempdir().unwrap();
        let at = |name: &str| home.path().join(name);
        let config = format!(
            "schema = 1\n[dataplane]\ninterfaces = [\"eth0\"]\nhash_seed = \"{SEED}\"\n# https://ops:hunter2@web.example/\n"
        );
        fs::write(at("lb.toml"), config).unwrap();
        fs::write(at("journal.jsonl"), format!("{{\"hash_seed\":\"{SEED}\"}}\nseed {SEED} of old\n"))
            .unwrap();
        let places = Places {
            doctor: doctor::Places { config: at("lb.toml"), socket: at("lbd.sock"), pins: at("pins") },
            state: home.path().to_owned(),
            metrics: "127.0.0.1:1".to_owned(),
        };
        let parts = collect(&places).await;
        let mut written = Vec::new();
        archive(&mut written, "lb-sysdump", &parts).unwrap();

        let mut read = tar::Archive::new(flate2::read::GzDecoder::new(written.as_slice()));
        let mut texts = std::collections::BTreeMap::new();
        for entry in read.entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            assert!(!text.contains(SEED) && !text.contains("hunter2"), "{name}: {text}");
            texts.insert(name, text);
        }
        assert!(texts["lb-sysdump/lb.toml"].contains("interfaces = [\"eth0\"]"), "{texts:?}");
        assert!(texts["lb-sysdump/doctor.json"].contains("LB1107"));
        assert!(texts["lb-sysdump/agent/status.json"].starts_with("(not there: cannot reach the agent"));
        assert!(texts["lb-sysdump/files/proc/net/dev"].contains("lo:"));
        assert!(texts["lb-sysdump/journal.jsonl"].contains(" of old"));
    }
}
