//! Where backends are looked for: names, name servers, addresses of the web.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use hyper::Uri;

use super::{TlsName, textual};
use crate::config::read::escaped;
use crate::config::{Code, Invalid};

/// A name that name servers are asked for. One that ends in a dot is asked for as it is, any other one with the search
/// domains of this host, too (resolv.conf(5)).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DnsName(Box<str>);

impl DnsName {
    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DnsName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(&self.0)
    }
}

impl FromStr for DnsName {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let what = || format!("{} cannot be resolved", escaped(text));
        if text.parse::<IpAddr>().is_ok() {
            let found = Invalid::new(Code::BadDnsName, what(), "expected a name such as `web.example`");
            return Err(found.help("an address needs no discovery: write a `[[service.pool.backend]]`"));
        }
        if TlsName::is_name(text.strip_suffix('.').unwrap_or(text)) {
            return Ok(Self(text.into()));
        }
        Err(Invalid::new(
            Code::BadDnsName,
            what(),
            "expected a name such as `web.example` or `_http._tcp.web.example`",
        ))
    }
}

textual!(DnsName, "a name such as \"web.example\"", { "type": "string", "minLength": 1, "maxLength": 254 });

/// Where a name server listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NameServer(SocketAddr);

impl NameServer {
    const PORT: u16 = 53;

    /// Address and port.
    pub const fn address(self) -> SocketAddr {
        self.0
    }
}

impl fmt::Display for NameServer {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.port() {
            Self::PORT => self.0.ip().fmt(out),
            _ => self.0.fmt(out),
        }
    }
}

impl FromStr for NameServer {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let alone = || text.parse().map(|ip: IpAddr| SocketAddr::new(ip, Self::PORT));
        text.parse().or_else(|_| alone()).map(Self).map_err(|_| {
            Invalid::new(
                Code::NotAnAddress,
                format!("{} is not an address", escaped(text)),
                "expected an address such as `10.0.0.53` or `10.0.0.53:5353`",
            )
        })
    }
}

textual!(NameServer, "the address of a name server", { "type": "string", "minLength": 1 });

/// What is asked for at a web server: `http` or `https`, without a user and without a fragment.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HttpUrl(Uri);

impl HttpUrl {
    /// In its parts. It has a scheme and a host.
    pub fn uri(&self) -> &Uri {
        &self.0
    }

    /// Whether it is asked within TLS.
    pub fn is_https(&self) -> bool {
        self.0.scheme_str() == Some("https")
    }

    /// For people, who need not see what stands behind `?`.
    pub fn without_query(&self) -> String {
        let text = self.0.to_string();
        text.split('?').next().unwrap_or_default().to_owned()
    }
}

impl fmt::Display for HttpUrl {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(out)
    }
}

impl FromStr for HttpUrl {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let refused = |why: &str| {
            Err(Invalid::new(Code::BadUrl, format!("{} cannot be asked for", escaped(text)), why))
        };
        if text.contains('#') {
            return refused("a fragment is nothing that a server sees");
        }
        let Ok(uri) = text.parse::<Uri>() else {
            return refused("expected a URL such as `http://10.0.0.5:8500/backends`");
        };
        match (uri.scheme_str(), uri.authority()) {
            (Some("http" | "https"), Some(host)) if !host.as_str().contains('@') => Ok(Self(uri)),
            (Some("http" | "https"), Some(_)) => refused("a user and a password have no place here"),
            _ => refused("expected a URL that begins with `http://` or `https://`"),
        }
    }
}

textual!(HttpUrl, "a URL such as \"http://10.0.0.5:8500/backends\"", { "type": "string", "pattern": "^https?://[^#]+$" });

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_resolved_and_addresses_are_not() {
        for good in ["web.example", "web.example.", "_http._tcp.web.example", "web"] {
            assert_eq!(good.parse::<DnsName>().unwrap().as_str(), good);
        }
        for bad in ["", ".", "10.0.0.1", "2001:db8::1", "a b", "a..b", "web.example:80", &"a".repeat(64)] {
            assert_eq!(bad.parse::<DnsName>().unwrap_err().code, Code::BadDnsName, "{bad}");
        }
    }

    #[test]
    fn name_servers_listen_on_port_53_unless_told_otherwise() {
        for (written, address, canonical) in [
            ("10.0.0.53", "10.0.0.53:53", "10.0.0.53"),
            ("10.0.0.53:53", "10.0.0.53:53", "10.0.0.53"),
            ("127.0.0.1:5353", "127.0.0.1:5353", "127.0.0.1:5353"),
            ("[::1]:5353", "[::1]:5353", "[::1]:5353"),
            ("::1", "[::1]:53", "::1"),
        ] {
            let server = written.parse::<NameServer>().unwrap();
            assert_eq!(
                (server.address().to_string(), server.to_string()),
                (address.into(), canonical.into())
            );
        }
        assert_eq!("ns.example".parse::<NameServer>().unwrap_err().code, Code::NotAnAddress);
    }

    #[test]
    fn urls_are_of_the_web_and_carry_no_password() {
        let url: HttpUrl = "https://registry.example:8443/v1/web?token=secret".parse().unwrap();
        assert!(url.is_https());
        assert_eq!(url.without_query(), "https://registry.example:8443/v1/web");
        for bad in ["", "/v1/web", "ftp://x/", "http://", "http://u:p@x/", "http://x/#y", "http://a b/"] {
            assert_eq!(bad.parse::<HttpUrl>().unwrap_err().code, Code::BadUrl, "{bad}");
        }
    }
}
