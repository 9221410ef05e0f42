//! `grpc`: a call of `grpc.health.v1.Health/Check`.

use hyper::{
    Uri,
    body::Bytes,
    http::uri::{Authority, PathAndQuery, Scheme},
};

use super::{HttpCheckError, Tls, http::authority};

/// A call of the [health protocol](https://github.com/grpc/grpc/blob/master/doc/health-checking.md).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrpcCheck {
    /// As it stands on the wire, length and flag included.
    pub(in crate::health) request: Bytes,
    pub(in crate::health) tls: Option<Tls>,
    host: Option<Authority>,
}

impl GrpcCheck {
    /// Asks for `service`, or for the server as a whole if it is empty; `host` is the authority (default: the target's
    /// address and port).
    ///
    /// # Errors
    /// A host that cannot stand in a request.
    pub fn new(service: &str, host: Option<&str>) -> Result<Self, HttpCheckError> {
        let host = host.map(authority).transpose()?;
        Ok(Self { request: framed(&request(service)), tls: None, host })
    }

    /// Within TLS.
    #[must_use]
    pub fn within(self, tls: Tls) -> Self {
        Self { tls: Some(tls), ..self }
    }

    /// What is asked of a target at `address`.
    pub(in crate::health) fn uri(&self, address: &str) -> Option<Uri> {
        let authority = match &self.host {
            Some(host) => host.clone(),
            None => address.parse().ok()?,
        };
        let mut parts = hyper::http::uri::Parts::default();
        parts.scheme = Some(if self.tls.is_some() { Scheme::HTTPS } else { Scheme::HTTP });
        parts.authority = Some(authority);
        parts.path_and_query = Some(PathAndQuery::from_static("/grpc.health.v1.Health/Check"));
        Uri::from_parts(parts).ok()
    }
}

/// `HealthCheckRequest { string service = 1; }`. A field that has its default is not there.
fn request(service: &str) -> Vec<u8> {
    /// Field 1, length-delimited.
    const SERVICE: u8 = 1 << 3 | 2;
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(SERVICE);
        varint(service.len(), &mut message);
        message.extend(service.as_bytes());
    }
    message
}

fn varint(mut n: usize, out: &mut Vec<u8>) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

/// A message of gRPC: not compressed, its length in four bytes, itself.
fn framed(message: &[u8]) -> Bytes {
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    [&[0], length.to_be_bytes().as_slice(), message].concat().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_is_written_as_protobuf_writes_it() {
        let request = |service| GrpcCheck::new(service, None).expect("no host is no mistake").request;
        assert_eq!(request("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(request("shop")[..], *b"\0\0\0\0\x06\x0a\x04shop");
        let long = request(&"s".repeat(300));
        assert_eq!(long[..9], *b"\0\0\0\x01\x2f\x0a\xac\x02s");
        assert_eq!(long.len(), 5 + 3 + 300);
    }

    #[test]
    fn the_authority_is_the_host_or_the_address() {
        let uri = |host| GrpcCheck::new("", host).expect("a host").uri("[2001:db8::1]:50051");
        let path = "/grpc.health.v1.Health/Check";
        assert_eq!(uri(None).expect("it is one").to_string(), format!("http://[2001:db8::1]:50051{path}"));
        assert_eq!(
            uri(Some("shop.example")).expect("it is one").to_string(),
            format!("http://shop.example{path}")
        );
        assert_eq!(GrpcCheck::new("", Some("a b")), Err(HttpCheckError::Host));
    }
}
