//! Where the backends of a pool are looked for: `[service.pool.discovery]`, and the lists that files and servers give.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use serde_json::Value as Json;

use super::keys::{Backend, BackendDraft};
use super::read::{Findings, Kind, List, Maybe, Node, Place, Table, Tables, draft, words};
use super::report::{Code, Diagnostic, Diagnostics, Severity};
use super::value::{Count, DnsName, FilePath, HttpUrl, NameServer, Phrase, Port, Time};

const SECOND: u64 = 1_000;
const DAY: u64 = 24 * 3_600 * SECOND;

/// Where the backends of a pool are looked for, beside those that are configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Discovery {
    /// Who is asked.
    pub source: Source,
    /// Port of backends that come without one, if not the service's.
    pub port: Option<u16>,
    /// An answer with more backends is refused.
    pub max: u32,
    /// What an answer without a backend means.
    pub on_empty: WhenEmpty,
}

/// Who knows the backends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Name servers.
    Dns(Dns),
    /// A file, which is followed.
    File(FilePath),
    /// A web server, which is asked again and again.
    Http(Http),
    /// The API server of a Kubernetes, which tells of changes.
    Kubernetes(Kubernetes),
}

/// What name servers are asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dns {
    /// The name.
    pub name: DnsName,
    /// The kind of records.
    pub record: Record,
    /// The servers; empty: those of this host's resolv.conf.
    pub servers: Vec<NameServer>,
    /// An answer is believed for its time to live, but at least so long. After a failure it is tried again so soon.
    pub min_ttl: Duration,
    /// And at most so long.
    pub max_ttl: Duration,
    /// How long one server may take.
    pub timeout: Duration,
}

/// What a web server is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Http {
    /// The list.
    pub url: HttpUrl,
    /// The authorities that are trusted, if not those of this host.
    pub ca_file: Option<FilePath>,
    /// From one question to the next.
    pub interval: Duration,
    /// How long an answer may take.
    pub timeout: Duration,
}

/// What an API server of Kubernetes is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kubernetes {
    /// The API server.
    pub url: HttpUrl,
    /// The namespace of the service there.
    pub namespace: DnsName,
    /// Its name there.
    pub name: DnsName,
    /// The name of its port there, if there are several.
    pub port_name: Option<Phrase>,
    /// The token that says who asks. Only sent within TLS.
    pub token_file: Option<FilePath>,
    /// The authorities that are trusted, if not those of this host.
    pub ca_file: Option<FilePath>,
    /// How long an answer may take.
    pub timeout: Duration,
}

draft! {
    /// Where the backends of a pool are looked for, beside those that are configured.
    DiscoveryDraft "[service.pool.discovery]" {
        /// Who knows them.
        kind @ "type": SourceKind,
        /// Port of backends that come without one, if not the service's.
        port: Maybe<Port<1>> = None,
        /// An answer with more backends is refused as a whole.
        max: Count<1, 65_535> = 1_000,
        /// What an answer without a backend means.
        on_empty: WhenEmpty = WhenEmpty::Keep,
        /// The name that name servers are asked for: every answer is a backend. Of type `kubernetes`, the service there.
        name: Maybe<DnsName> = None,
        /// The kind of records that they are asked for.
        record: Record = Record::Address,
        /// The name servers, if not those of this host's resolv.conf.
        servers: Maybe<List<NameServer>> = None,
        /// An answer is believed for its time to live, but at least so long. After a failure it is tried again so soon.
        min_ttl: Time<SECOND, DAY> = Duration::from_secs(5),
        /// And at most so long.
        max_ttl: Time<SECOND, DAY> = Duration::from_secs(300),
        /// The file: a list `backends` in JSON or TOML, each with the keys of `[[service.pool.backend]]`. It is read again
        /// whenever it changes.
        path: Maybe<FilePath> = None,
        /// The address of such a list in JSON. Of type `kubernetes`, the API server: its EndpointSlices are followed.
        url: Maybe<HttpUrl> = None,
        /// The namespace of the service in Kubernetes.
        namespace: Maybe<DnsName> = None,
        /// The name of its port there, if there are several.
        port_name: Maybe<Phrase> = None,
        /// File with the token that says who asks Kubernetes; read again for each request, and sent over `https` only.
        token_file: Maybe<FilePath> = None,
        /// PEM file with the authorities that are trusted, if not those of this host.
        ca_file: Maybe<FilePath> = None,
        /// How often a web server is asked.
        interval: Time<SECOND, DAY> = Duration::from_secs(10),
        /// How long a server may take to answer.
        timeout: Time<100, { 60 * SECOND }> = Duration::from_secs(5),
    }
}

words! {
    /// Who knows the backends of a pool.
    SourceKind, "a type of discovery" {
        /// Name servers.
        Dns = "dns",
        /// A file.
        File = "file",
        /// A web server.
        Http = "http",
        /// An API server of Kubernetes.
        Kubernetes = "kubernetes",
    }
}

words! {
    /// What name servers are asked for.
    Record, "a kind of record" {
        /// IPv4 and IPv6 addresses; those of the VIP's family in mode `nat`.
        Address = "address",
        /// IPv4 addresses.
        A = "a",
        /// IPv6 addresses.
        Aaaa = "aaaa",
        /// Names with ports, priorities and weights (RFC 2782), and the addresses of those names.
        Srv = "srv",
    }
}

words! {
    /// What an answer without a backend means.
    WhenEmpty, "a policy for empty answers" {
        /// Somebody has made a mistake: the last backends stay.
        Keep = "keep",
        /// There are none.
        Clear = "clear",
    }
}

impl Source {
    /// The word for it in the file.
    pub const fn kind(&self) -> SourceKind {
        match self {
            Self::Dns(_) => SourceKind::Dns,
            Self::File(_) => SourceKind::File,
            Self::Http(_) => SourceKind::Http,
            Self::Kubernetes(_) => SourceKind::Kubernetes,
        }
    }
}

/// What people call it, such as `dns:web.example`.
impl fmt::Display for Source {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(dns) => write!(out, "dns:{}", dns.name),
            Self::File(path) => write!(out, "file:{path}"),
            Self::Http(http) => write!(out, "http:{}", http.url.without_query()),
            Self::Kubernetes(it) => write!(out, "kubernetes:{}/{}", it.namespace, it.name),
        }
    }
}

impl Kind for Discovery {
    type Draft = DiscoveryDraft;
    type Value = Self;

    fn read(node: &Node, findings: &mut Findings) -> Option<DiscoveryDraft> {
        DiscoveryDraft::read(node, findings)
    }

    fn finish(draft: DiscoveryDraft) -> Option<Self> {
        let (name, servers, record) = (draft.name.value?, draft.servers.value?, draft.record.value?);
        let servers = servers.unwrap_or_default().into_iter().map(|(_, server)| server).collect();
        let (min_ttl, max_ttl) = (draft.min_ttl.value?, draft.max_ttl.value?);
        let (path, url, ca_file) = (draft.path.value?, draft.url.value?, draft.ca_file.value?);
        let (interval, timeout) = (draft.interval.value?, draft.timeout.value?);
        let (namespace, port_name, token_file) =
            (draft.namespace.value?, draft.port_name.value?, draft.token_file.value?);
        let source = match draft.kind.value? {
            SourceKind::Dns => Source::Dns(Dns { name: name?, record, servers, min_ttl, max_ttl, timeout }),
            SourceKind::File => Source::File(path?),
            SourceKind::Http => Source::Http(Http { url: url?, ca_file, interval, timeout }),
            SourceKind::Kubernetes => Source::Kubernetes(Kubernetes {
                url: url?,
                namespace: namespace.or_else(|| "default".parse().ok())?,
                name: name?,
                port_name,
                token_file,
                ca_file,
                timeout,
            }),
        };
        let (port, max, on_empty) = (draft.port.value?, draft.max.value?, draft.on_empty.value?);
        Some(Self { source, port, max, on_empty })
    }

    fn write<S: Serializer>(value: &Self, to: S) -> Result<S::Ok, S::Error> {
        value.serialize(to)
    }

    fn schema() -> Json {
        DiscoveryDraft::schema()
    }
}

impl Serialize for Discovery {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let time = |duration| humantime::format_duration(duration).to_string();
        let mut out = to.serialize_map(None)?;
        out.serialize_entry("type", &self.source.kind())?;
        if let Some(port) = &self.port {
            out.serialize_entry("port", port)?;
        }
        out.serialize_entry("max", &self.max)?;
        out.serialize_entry("on_empty", &self.on_empty)?;
        match &self.source {
            Source::Dns(dns) => {
                out.serialize_entry("name", &dns.name)?;
                out.serialize_entry("record", &dns.record)?;
                if !dns.servers.is_empty() {
                    out.serialize_entry("servers", &dns.servers)?;
                }
                out.serialize_entry("min_ttl", &time(dns.min_ttl))?;
                out.serialize_entry("max_ttl", &time(dns.max_ttl))?;
                out.serialize_entry("timeout", &time(dns.timeout))?;
            }
            Source::File(path) => out.serialize_entry("path", path)?,
            Source::Http(http) => {
                out.serialize_entry("url", &http.url)?;
                if let Some(file) = &http.ca_file {
                    out.serialize_entry("ca_file", file)?;
                }
                out.serialize_entry("interval", &time(http.interval))?;
                out.serialize_entry("timeout", &time(http.timeout))?;
            }
            Source::Kubernetes(it) => {
                out.serialize_entry("url", &it.url)?;
                out.serialize_entry("namespace", &it.namespace)?;
                out.serialize_entry("name", &it.name)?;
                if let Some(name) = &it.port_name {
                    out.serialize_entry("port_name", name)?;
                }
                for (key, file) in [("token_file", &it.token_file), ("ca_file", &it.ca_file)] {
                    if let Some(file) = file {
                        out.serialize_entry(key, file)?;
                    }
                }
                out.serialize_entry("timeout", &time(it.timeout))?;
            }
        }
        out.end()
    }
}

draft! {
    /// Backends, as a file or a server lists them.
    ListDraft "" {
        /// Who serves.
        backends: Tables<Backend>,
    }
}

/// Reads a list of backends, sorted by address: JSON if it begins with `{`, else TOML. `name` is what messages call it, `port`
/// is for backends that come without one.
///
/// # Errors
/// The first mistake with its place, and how many more there are.
pub fn read_backends(text: &str, name: &str, port: u16) -> Result<Vec<Backend>, String> {
    let mut findings = Findings::default();
    let is_json = text.trim_start().starts_with('{');
    let root = match is_json {
        true => match serde_json::from_str(text) {
            Ok(json) => Node::of_json(json, Place::default()),
            Err(error) => return Err(format!("{name}: {error}")),
        },
        false => Node::of_toml(text, &mut findings),
    };
    let listed = ListDraft::read(&root, &mut findings).and_then(|draft| draft.backends.value);
    let mut listed = listed.unwrap_or_default();
    for target in listed.iter_mut().filter_map(|backend| backend.address.value.as_mut()) {
        target.port = target.port.or(Some(port));
    }
    twice(&listed, &mut findings);
    if findings.any_error() {
        return Err(first_of(&Diagnostics::new(name, text, findings.list), is_json));
    }
    let backends = listed.into_iter().map(Backend::finish).collect::<Option<Vec<_>>>();
    // What was lost to a mistake was told above.
    let mut backends = backends.ok_or_else(|| format!("{name}: it cannot be understood"))?;
    backends.sort_by_key(|backend| backend.address);
    Ok(backends)
}

fn twice(listed: &[BackendDraft], findings: &mut Findings) {
    let mut seen = HashMap::new();
    for (target, at) in listed.iter().filter_map(|backend| backend.address.get()) {
        if let Some(first) = seen.insert((target.ip, target.port), at) {
            let found =
                Diagnostic::new(Code::DuplicateBackend, format!("the backend {target} is there twice"));
            findings.add(found.at(at, "again here").at(first, "first here"));
        }
    }
}

fn first_of(found: &Diagnostics, is_json: bool) -> String {
    let errors = found.reports().into_iter().filter(|report| report.severity == Severity::Error);
    let mut errors = errors.map(|report| {
        let place = match is_json {
            true if report.at.path.is_empty() => String::new(),
            // JSON is read without places, so that keys have to do.
            true => format!(" {}:", report.at.path),
            false => format!("{}:{}:", report.at.line, report.at.column),
        };
        format!("{}:{place} {} ({})", report.file, report.message, report.at.label)
    });
    let first = errors.next().unwrap_or_default();
    match errors.count() {
        0 => first,
        1 => format!("{first}, and one more mistake"),
        more => format!("{first}, and {more} more mistakes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(text: &str) -> Result<Vec<(String, u16)>, String> {
        let backends = read_backends(text, "list", 8080)?;
        Ok(backends.iter().map(|backend| (backend.address.to_string(), backend.weight.get())).collect())
    }

    #[test]
    fn json_and_toml_say_the_same() {
        let json = r#"{"backends": [{"address": "10.0.0.2:80", "weight": 7}, {"address": "10.0.0.1"}]}"#;
        let toml =
            "[[backends]]\naddress = \"10.0.0.2:80\"\nweight = 7\n[[backends]]\naddress = \"10.0.0.1\"\n";
        let expected = Ok(vec![("10.0.0.1:8080".to_owned(), 100), ("10.0.0.2:80".to_owned(), 7)]);
        assert_eq!(listed(json), expected);
        assert_eq!(listed(toml), expected);
        assert_eq!(listed("{\"backends\": []}"), Ok(vec![]));
        assert_eq!(listed("backends = []"), Ok(vec![]));
    }

    #[test]
    fn a_mistake_is_told_with_its_place() {
        for (text, expected) in [
            ("{", "list: EOF while parsing an object at line 1 column 1"),
            ("", "list:1:1: the file lacks `backends` (required key is missing)"),
            ("[[backends]]\naddress = \"10.0.0.300:80\"", "list:2:11: `10.0.0.300:80` is not an address"),
            ("[[backends]]\naddress = \"127.0.0.1:80\"", "list:2:11: `127.0.0.1` is loopback"),
            (
                r#"{"backends": [{"address": "10.0.0.1", "wieght": 1}]}"#,
                "list: backends[0].wieght: there is no key",
            ),
            (
                r#"{"backends": [{"address": "10.0.0.1"}, {"address": "10.0.0.1:8080"}]}"#,
                "list: backends[1].address: the backend 10.0.0.1:8080 is there twice",
            ),
            (r#"{"backends": [{"address": 1}, {"weight": 1}, {}]}"#, "list: backends[0].address: "),
        ] {
            let told = listed(text).unwrap_err();
            assert!(told.starts_with(expected), "{text}: {told}");
        }
        let many = listed(r#"{"backends": [{"address": 1}, {"weight": 1}, {}]}"#).unwrap_err();
        assert!(many.ends_with(", and 2 more mistakes"), "{many}");
    }
}
