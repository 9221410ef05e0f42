//! One GET of a web server (HTTP/1.1, RFC 9110), on a connection of its own, within TLS where the URL says so. Redirects are
//! not followed: who is asked is who was configured.

use std::error::Error;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, CONNECTION, HOST, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use hyper::{Request, StatusCode, Uri, client::conn::http1};
use hyper_util::rt::TokioIo;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{self, CertificateError};

use crate::health::{Alpn, Tls, Trust};

/// A URL as it may be told: its query may hold a secret, and so may what stands before its host.
#[must_use]
pub fn shown(url: &str) -> String {
    let url = url.split(['?', '#']).next().unwrap_or_default();
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    format!("{scheme}://{host}{path}")
}

/// How long a server may be silent before it is asked whether it is there at all, and from one such question to the next.
const ALIVE: Duration = Duration::from_secs(15);

/// What is asked for.
pub struct Get<'a> {
    /// The URL: `http` or `https`, with a host.
    pub uri: &'a Uri,
    /// Who asks, for the server's log: `lb-discovery`.
    pub agent: &'static str,
    /// The authorities that are trusted, if not those of this host.
    pub ca_file: Option<&'a Path>,
    /// Headers besides `Host`, `User-Agent`, `Accept` and `Connection`.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// More bytes than that are an error.
    pub limit: usize,
}

/// What came back.
#[derive(Debug)]
pub struct Got {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body, whatever the status.
    pub body: Bytes,
}

/// An answer whose body has yet to come.
pub struct Opened {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    body: Incoming,
    /// Ends with this value.
    _driving: JoinSet<hyper::Result<()>>,
}

impl Opened {
    /// All of its body.
    ///
    /// # Errors
    ///
    /// If the connection breaks before its end, or it is longer than `limit` bytes.
    pub async fn body(&mut self, limit: usize) -> Result<Bytes, String> {
        let body = Limited::new(&mut self.body, limit).collect().await.map_err(|error| why(&*error))?;
        Ok(body.to_bytes())
    }

    /// What comes next of its body; `None`: nothing.
    ///
    /// # Errors
    ///
    /// If the connection breaks.
    pub async fn piece(&mut self) -> Result<Option<Bytes>, String> {
        match self.body.frame().await {
            None => Ok(None),
            Some(Err(error)) => Err(why(&error)),
            // (Trailers are no data.)
            Some(Ok(frame)) => Ok(Some(frame.into_data().unwrap_or_default())),
        }
    }
}

impl Get<'_> {
    /// Asks, once. How long that may take is the caller's to say.
    ///
    /// # Errors
    ///
    /// Why there is no answer, in words; never with the query of the URL, which may hold a secret.
    pub async fn ask(self) -> Result<Got, String> {
        let limit = self.limit;
        let mut opened = self.open().await?;
        let body = opened.body(limit).await?;
        Ok(Got { status: opened.status, headers: opened.headers, body })
    }

    /// The same, but for the body, which may go on for as long as there is something to be said.
    ///
    /// # Errors
    ///
    /// As [`Get::ask`].
    pub async fn open(self) -> Result<Opened, String> {
        let authority = self.uri.authority().ok_or("there is no host in it")?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        let is_https = self.uri.scheme_str() == Some("https");
        let port = authority.port_u16().unwrap_or(if is_https { 443 } else { 80 });
        let stream =
            TcpStream::connect((host, port)).await.map_err(|error| format!("cannot connect: {error}"))?;
        // A server that dies without a word is noticed, however long it has nothing to say.
        let alive = TcpKeepalive::new().with_time(ALIVE).with_interval(ALIVE).with_retries(3);
        SockRef::from(&stream).set_tcp_keepalive(&alive).map_err(|error| error.to_string())?;
        let path = self.uri.path_and_query().map_or("/", |path| path.as_str());
        let mut request = Request::get(path)
            .header(HOST, authority.as_str())
            .header(USER_AGENT, format!("{}/{}", self.agent, env!("CARGO_PKG_VERSION")))
            .header(ACCEPT, "application/json")
            .header(CONNECTION, "close");
        for (name, value) in self.headers {
            request = request.header(name, value);
        }
        let request = request.body(Empty::new()).map_err(|error| error.to_string())?;
        if !is_https {
            return exchange(stream, request).await;
        }
        let peer = stream.peer_addr().map_err(|error| error.to_string())?;
        let stream = within_tls(host, peer.ip(), self.ca_file, stream).await?;
        exchange(stream, request).await
    }
}

async fn within_tls(
    host: &str,
    address: IpAddr,
    ca_file: Option<&Path>,
    stream: TcpStream,
) -> Result<impl AsyncRead + AsyncWrite + Unpin + Send + use<>, String> {
    let trust = ca_file.map_or(Trust::Host, |file| Trust::File(file.to_owned()));
    let name = ServerName::try_from(host.to_owned()).map_err(|error| error.to_string())?;
    // Files are read each time: certificates are renewed.
    let tls = Tls::new(trust, Some(name), Alpn::Http1);
    let (connector, name) = tls.towards(address).map_err(|trouble| trouble.to_string())?;
    connector.connect(name, stream).await.map_err(|error| no_tls(&error, ca_file))
}

/// Why there is no TLS. (Where authorities have the same name, as those of Kubernetes have, the wrong one is a wrong signature.)
fn no_tls(error: &io::Error, ca_file: Option<&Path>) -> String {
    use CertificateError::{BadSignature, UnknownIssuer};
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let whose = match (inner, ca_file) {
        (Some(rustls::Error::InvalidCertificate(UnknownIssuer | BadSignature)), Some(file)) => {
            format!("no authority in {} has signed its certificate: ", file.display())
        }
        (Some(rustls::Error::InvalidCertificate(UnknownIssuer | BadSignature)), None) => {
            "no authority that this host trusts has signed its certificate: ".to_owned()
        }
        _ => String::new(),
    };
    format!("no TLS: {whose}{error}")
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Empty<Bytes>>,
) -> Result<Opened, String> {
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| why(&error))?;
    let mut driving = JoinSet::new();
    driving.spawn(connection);
    let (head, body) = sender.send_request(request).await.map_err(|error| why(&error))?.into_parts();
    Ok(Opened { status: head.status, headers: head.headers, body, _driving: driving })
}

/// An error, and what it comes from.
fn why(error: &(dyn Error + 'static)) -> String {
    let (mut words, mut cause) = (error.to_string(), error.source());
    while let Some(error) = cause {
        words += &format!(": {error}");
        cause = error.source();
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_told_without_its_secrets() {
        for (url, told) in [
            ("https://gate.example/go?token=hunter2", "https://gate.example/go"),
            ("https://ops:hunter2@gate.example:8443/go#x", "https://gate.example:8443/go"),
            ("http://[2001:db8::1]:80?hunter2", "http://[2001:db8::1]:80"),
            ("http://gate.example/a@b", "http://gate.example/a@b"),
        ] {
            assert_eq!(shown(url), told);
        }
    }
}
