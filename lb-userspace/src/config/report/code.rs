//! Every kind of mistake: its code, which never changes, and what to say about it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How grave a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(rename = "ReportSeverity")]
pub enum Severity {
    /// Nothing is changed until it is mended.
    Error,
    /// It is taken as it stands, and is probably not what was meant.
    Warning,
}

macro_rules! codes {
    ($( $severity:ident $name:ident = $code:literal, $title:literal, $explanation:literal; )+) => {
        /// A kind of mistake. The codes are stable: documents, scripts and people refer to them.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
        #[schemars(rename = "ReportCode")]
        pub enum Code {
            $( #[doc = $title] #[serde(rename = $code)] $name, )+
        }

        impl Code {
            /// Every code there is, in order.
            pub const ALL: &'static [Self] = &[$( Self::$name ),+];

            /// The code as it is printed, such as `LB0103`.
            pub const fn as_str(self) -> &'static str {
                match self { $( Self::$name => $code ),+ }
            }

            /// Whether it keeps a configuration from being used.
            pub const fn severity(self) -> Severity {
                match self { $( Self::$name => Severity::$severity ),+ }
            }

            /// What it is about, in a few words.
            pub const fn title(self) -> &'static str {
                match self { $( Self::$name => $title ),+ }
            }

            /// Why it matters and how it is mended, for whoever looks the code up.
            pub const fn explanation(self) -> &'static str {
                match self { $( Self::$name => $explanation ),+ }
            }
        }
    };
}

codes! {
    Error Syntax = "LB0001", "the text is not TOML",
        "The file cannot be read as TOML 1.1. Other mistakes may show once this one is mended, because parts of the file were not understood.";
    Error UnknownKey = "LB0101", "a key that does not exist",
        "A key that is not understood is refused rather than skipped: a setting that was mistyped would otherwise silently have no effect.";
    Error MissingKey = "LB0102", "a key that is required is missing",
        "The table lacks a key that has no sensible default.";
    Error WrongType = "LB0103", "a value of the wrong type",
        "TOML tells text from numbers: `port = 443` is a number, `port = \"443\"` is text. Durations and addresses are text.";
    Error Schema = "LB0104", "a schema version that this program does not know",
        "`schema` says which version of the configuration language the file is written in. This program reads version 1.";
    Error UnknownWord = "LB0201", "a word that is not among those allowed",
        "The key takes one of a fixed set of words.";
    Error OutOfRange = "LB0203", "a number outside its range",
        "The number is understood, and is smaller or larger than what the key takes.";
    Error NotAnAddress = "LB0204", "text that is not an address",
        "Addresses are numeric. IPv4 is written `10.0.0.1`, IPv6 `2001:db8::1`; with a port `10.0.0.1:80` and `[2001:db8::1]:80`. Names are not resolved here.";
    Error UnusableAddress = "LB0205", "an address that cannot be balanced",
        "A VIP or a backend is a unicast address that other hosts can reach: not unspecified, loopback, link-local, multicast or broadcast.";
    Error BadDuration = "LB0206", "a duration that cannot be understood",
        "A duration is a number with its unit: `500ms`, `5s`, `15m`, `1h 30m`.";
    Error DurationRange = "LB0207", "a duration outside its range",
        "The duration is understood, and is shorter or longer than what the key takes.";
    Error NotPrime = "LB0208", "a table size that is not prime",
        "Maglev walks the table in steps of a size drawn for each backend. Only with a prime size does every walk reach every slot.";
    Error BadName = "LB0209", "a name that cannot be used",
        "Names of services and pools appear in `SERVICE/POOL/BACKEND`, in metrics and in paths of the API: letters, digits, `.`, `_` and `-`, at most 63, the first one a letter or a digit.";
    Error BadSeed = "LB0210", "a hash seed that cannot be used",
        "The seed is 128 bits, written as 32 hexadecimal digits. `openssl rand -hex 16` makes one.";
    Error BadInterface = "LB0211", "a name that no interface can have",
        "Linux allows at most 15 bytes, and neither blanks, `/` nor `:`.";
    Error BadHttpPath = "LB0212", "a path that cannot be asked for",
        "The path of an HTTP check begins with `/` and has printable ASCII characters only, others percent-encoded (RFC 9112, 3.2.1).";
    Error BadHttpHost = "LB0213", "a name that cannot stand in a Host header",
        "It is a host name or an address, with a port where needed (RFC 9110, 7.2).";
    Error BadStatus = "LB0214", "status codes that cannot be understood",
        "Status codes and ranges of them, separated by commas: `200-299, 401`. They lie between 100 and 599.";
    Error BadPrefix = "LB0215", "text that is not an address prefix",
        "A prefix is a network address and its length: `172.16.0.0/16`, `100::/64`.";
    Error NoInterface = "LB0216", "no interface to work on",
        "The balancer looks at packets where they arrive. Without an interface it sees none.";
    Error DuplicateInterface = "LB0217", "an interface that is listed twice",
        "A program is attached to an interface once.";
    Error BadCommand = "LB0218", "a command that cannot be run",
        "A command is a list of words: a program by its absolute path, and its arguments. There is no shell; name one if you need it: [\"/bin/sh\", \"-c\", \"…\"].";
    Error BadPayload = "LB0219", "text that cannot be sent or expected",
        "What a check sends or expects is not empty. In `send` and `expect` any byte can be written as `\\xNN`, best in TOML's single quotes.";
    Error BadFilePath = "LB0220", "text that is not the path of a file",
        "Files are named by their absolute paths.";
    Error BadTlsName = "LB0221", "a name that no certificate is for",
        "It is a host name or an address, without a port (RFC 6125).";
    Error BadPorts = "LB0240", "text that is not a range of ports",
        "A range is the first and the last port: `1024-32767`. Port 0 is none.";
    Error SourcesExhausted = "LB0241", "more addresses for clients than there is room for",
        "Up to 8 addresses of each family stand for clients in mode `full-nat`.";
    Error SourceIsVip = "LB0242", "an address that is a VIP and stands for clients",
        "What comes to an address that stands for clients is the reply of a backend; what comes to a VIP is a request.";
    Error BadQuicKey = "LB0250", "a key of connection ids that cannot be used",
        "The key is that of AES-128, written as 32 hexadecimal digits, and the servers have the same one. `openssl rand -hex 16` makes one.";
    Error BadServerId = "LB0251", "text that is not a server id",
        "A server id is 1 to 15 bytes, written as two hexadecimal digits each: \"0a01\".";
    Error NoPool = "LB0301", "a service without a pool",
        "The first pool of a service is its stable one: without it there is nowhere to send a client.";
    Error DuplicatePool = "LB0302", "two pools of one name in a service",
        "Commands and metrics name a pool by service and name.";
    Error DuplicateBackend = "LB0303", "a backend that is twice in a service",
        "A backend belongs to one pool of a service: its flows, weight and state could not be told apart otherwise. Give it the sum of the weights instead.";
    Error FamilyMismatch = "LB0304", "a backend of another address family than its VIP",
        "Modes `nat` and `full-nat` rewrite addresses in place and cannot turn IPv4 into IPv6. Modes `dsr-l2`, `dsr-ipip` and `dsr-gue` can mix the families.";
    Error PortChanged = "LB0305", "a backend port that the mode cannot reach",
        "In the `dsr-…` modes the packet reaches the backend as the client sent it, so the backend listens on the port of the service.";
    Error PortOfAll = "LB0306", "a backend port in a service of every port",
        "With `port = 0` the client's port is kept, so a backend has no port of its own.";
    Error PortZero = "LB0307", "port 0 in a service of one port",
        "Port 0 stands for every port, and only where the service itself has `port = 0`.";
    Error TrackingTcp = "LB0308", "a TCP service without tracking",
        "Established TCP connections must not change their backend, so they are tracked wherever they would. Only UDP can go without.";
    Error TimeoutTooLong = "LB0309", "a health check that may last longer than its interval",
        "A check ends before the next one begins, so `timeout` is at most `interval`, `fast_interval` and `down_interval`.";
    Error HttpPathMissing = "LB0310", "an HTTP check without a path",
        "Say which resource answers for the backend's health.";
    Error HealthPortMissing = "LB0311", "a health check that has no port to go to",
        "The backends of a service of every port have no port, so the check needs one of its own.";
    Error CheckIncomplete = "LB0312", "a health check that lacks what it asks with",
        "A check of type `udp` needs a datagram to send, one of type `exec` a command to run.";
    Error FastTooSlow = "LB0313", "a fast interval that is longer than the usual one",
        "`fast_interval` is for knowing sooner what a first contradicting result has announced, so it is at most `interval`.";
    Error ViaWithoutDsr = "LB0314", "a health check of the VIP where backends do not have it",
        "`via = \"vip\"` probes the VIP on each backend, by the way of clients' packets. In the `dsr` modes backends have the VIP; in all others packets come to their own address, which is what checks ask without it.";
    Error MinHealthy = "LB0320", "a pool that can never be healthy enough",
        "`min_healthy` and `min_healthy_recover` ask for more backends than the pool has that take flows at all (weight above 0), so that it would count as failed for ever.";
    Error MinHealthyOrder = "LB0321", "a pool that would come back before it falls",
        "A pool fails below `min_healthy` and comes back at `min_healthy_recover`: the second one is at least the first one, and nothing without it.";
    Error RolloutSteps = "LB0330", "steps of a rollout that contradict each other",
        "Each step gives the canary more than the one before: growing it only adds clients, and going back is for when it is bad. Steps are given in short (`shares`) or in full (`[[service.rollout.step]]`), not both.";
    Error GateIncomplete = "LB0331", "a gate that does not say whom to ask",
        "A gate of type `command` needs a `command`, one of type `http` a `url`, one of type `file` a `file`.";
    Error MetricIncomplete = "LB0332", "a metric that cannot say whether a canary is good",
        "A metric has a name of its own, at least one bound (`max`, `min`, `max_ratio`, `min_ratio`), and a query. What is compared with the stable pool has to name the pool in its query: `{{pool}}`.";
    Error BadPlaceholder = "LB0333", "a placeholder that does not exist",
        "In the query of a metric `{{service}}`, `{{pool}}` and `{{window}}` are filled in. PromQL itself has no double braces.";
    Error PreviewTaken = "LB0334", "a preview at an address that is not free for it",
        "A preview (`preview` in `[service.rollout]`) takes packets from clients for itself: nobody else may have its address and port, neither a service, nor another preview, nor a service of every port; no backend may have its address; and it is of the family of the backends, which it is translated to.";
    Error DiscoveryIncomplete = "LB0340", "a discovery that does not say whom to ask",
        "A discovery of type `dns` needs a `name`, one of type `file` a `path`, one of type `http` a `url`, one of type `kubernetes` both `url` and `name`.";
    Error DiscoveryTimes = "LB0341", "an answer that would be believed for less than no time",
        "An answer of a name server is believed for its time to live, but at least for `min_ttl` and at most for `max_ttl`.";
    Error BadDnsName = "LB0342", "a name that cannot be resolved",
        "Labels of at most 63 letters, digits, `-` and `_`, separated by dots (RFC 1035, RFC 2782). A dot at the end keeps the search domains of this host away from it.";
    Error BadUrl = "LB0343", "an address of the web that cannot be asked for",
        "A URL with `http` or `https`, a host, and no user: it is shown in logs, metrics and the journal.";
    Error OutlierTimes = "LB0350", "an ejection that would be longer than the longest",
        "`base_ejection` is how long the first one lasts, and doubles until it is `max_ejection`.";
    Error BreakerMarks = "LB0351", "marks of a breaker that contradict each other",
        "It is open from `high` on and closed up to `low`; what lies between is shed by and by.";
    Error PassiveUdp = "LB0352", "passive health of a UDP service",
        "UDP has no handshakes: nobody can see from outside whether a datagram was welcome. Say how the backends are checked in `[service.health]`.";
    Error RetryOneWay = "LB0353", "a retry or a time where answers are not seen",
        "In the dsr modes backends answer past the balancer, so that nobody can time them. A connection is tried again elsewhere when its client repeats its SYN. If the first backend was only slow, both answer, and the client takes the first answer and is reset by the second backend. In mode `nat` the late answer is kept from it.";
    Error NotInFullNat = "LB0357", "a feature that mode `full-nat` does not have",
        "Limits of connections and retries need a connection that can still be sent elsewhere. In mode `full-nat` its session stands with its first SYN.";
    Error ToaWithoutNeed = "LB0358", "an option that tells of the client where it cannot or need not",
        "`toa` tells a backend of the client in an option of TCP, in mode `full-nat`. In all other modes the backend sees the client's address in every packet.";
    Error NetworkTwice = "LB0370", "a network that is listed twice",
        "In `allow` and `deny` the smallest network that a client is in says whether it may talk to the service. A network that is in both, or in one of them twice, says nothing clear. A part of it may be in the other list.";
    Error NewOfUdp = "LB0371", "a limit of new connections in a UDP service",
        "UDP has no connections: no datagram says that it is the first one. Datagrams can be limited: `max_packets_per_second`, `source_max_packets_per_second`.";
    Error QuicNowhere = "LB0380", "connection ids where they lead nowhere",
        "QUIC is spoken over UDP. In mode `full-nat` a session is one of the client's and the backend's addresses: a client that changes its own would be another one.";
    Error QuicIncomplete = "LB0381", "connection ids that nobody could read",
        "There is at least one `[[service.quic.config]]`. Each has an id of its own, and a server id and a nonce that have 19 bytes at most together: a connection id of QUIC version 1 has 20.";
    Error ServerIdTwice = "LB0382", "a server id that is twice in a service",
        "A connection id names one backend.";
    Error ServerIdLength = "LB0383", "a server id of a length that no connection id has",
        "Each `[[service.quic.config]]` says how long the server ids in its connection ids are. A backend has one of each length.";
    Error DuplicateService = "LB0401", "two services of one name",
        "Commands, metrics and revisions name a service by its name.";
    Error DuplicateVip = "LB0402", "two services at one address, port and protocol",
        "A packet belongs to one service.";
    Error RepliesAmbiguous = "LB0403", "two `nat` services whose replies cannot be told apart",
        "In mode `nat` the source of a reply is rewritten to the VIP from the backend's address and port alone, without per-flow state. Two services that share a backend's address and port would get each other's replies. Use a `dsr-…` mode for one of them, or give the backend a second address or port.";
    Error BackendIsVip = "LB0404", "a backend that is itself a VIP",
        "The packet would come back to the balancer for ever.";
    Error SlotsExhausted = "LB0405", "tables that do not fit into the slots there are",
        "Each service takes `table_size` slots for its stable pool, and as many for the canary if it has a second pool. A slot is 8 bytes of memory.";
    Error BackendsExhausted = "LB0406", "more backends than there is room for",
        "Backends have numbers of 16 bits in the kernel's tables; `dataplane.backends` says for how many there is room.";
    Error ServicesExhausted = "LB0407", "more services than there is room for",
        "`dataplane.services` says for how many there is room.";
    Error PrefixesExhausted = "LB0410", "more networks than there is room for",
        "Each network of `allow` and `deny` takes a place for its service and one for its VIP, whose host answers ICMP. `dataplane.prefixes` says how many there are.";
    Warning FewSlots = "LB0901", "a table that is small for its number of backends",
        "With fewer than 100 slots a backend, weights are kept coarsely and a change moves more flows than it needs to.";
    Warning EmptyPool = "LB0902", "a pool without backends",
        "What `on_empty` says is done with every client of the pool.";
    Warning AllZero = "LB0903", "a pool whose backends all have weight 0",
        "No backend takes a new flow; what `on_empty` says is done with every new client of the pool.";
    Warning Unchecked = "LB0904", "a service without health checks",
        "A backend that is dead keeps getting its share of the clients. Say `type = \"none\"` if that is meant.";
    Warning NoEffect = "LB0905", "a key that has no effect here",
        "The key belongs to another type of health check than the one chosen, or to a feature that is not in use.";
    Warning OutlierIdle = "LB0920", "a limit that keeps everybody in",
        "`max_ejected_percent` is never exceeded, not even by the first backend: in a pool of so few it ejects nobody.";
    Warning Unnamed = "LB0921", "a backend that no connection id names",
        "In a service with `[service.quic]` a client that changes its address keeps its backend if the ids of its connection name it: its server has to write them, and its `server_ids` have to stand here.";
    Warning RolloutAlone = "LB0930", "a rollout in a service of one pool",
        "A rollout takes clients from one pool to another.";
}

impl std::fmt::Display for Code {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(self.as_str())
    }
}

impl std::str::FromStr for Code {
    type Err = UnknownCode;

    fn from_str(text: &str) -> Result<Self, UnknownCode> {
        let known = Self::ALL.iter().find(|code| code.as_str().eq_ignore_ascii_case(text));
        known.copied().ok_or_else(|| UnknownCode(text.to_owned()))
    }
}

/// No mistake has this code.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no mistake with the code {0:?}")]
pub struct UnknownCode(pub String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_in_order_and_of_one_form() {
        let codes: Vec<&str> = Code::ALL.iter().map(|code| code.as_str()).collect();
        assert!(codes.is_sorted_by(|a, b| a < b), "{codes:?}");
        for code in codes {
            let digits = code.strip_prefix("LB").unwrap();
            assert!(digits.len() == 4 && digits.bytes().all(|b| b.is_ascii_digit()), "{code}");
        }
    }

    #[test]
    fn a_code_is_read_back_from_its_text() {
        for &code in Code::ALL {
            assert_eq!(code.as_str().parse(), Ok(code));
            assert_eq!(serde_json::to_value(code).unwrap(), code.as_str());
        }
        assert!("LB9999".parse::<Code>().is_err());
    }

    #[test]
    fn warnings_are_the_codes_from_0901_on() {
        for code in Code::ALL {
            assert_eq!(code.severity() == Severity::Warning, code.as_str() >= "LB0901", "{code}");
        }
    }
}
