//! TLS of checks: whose certificates are trusted, and for which name.

use std::{
    fmt, fs,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, LazyLock},
};

use tokio_rustls::{
    TlsConnector,
    rustls::{
        self, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
        client::{
            Resumption,
            danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        },
        crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
        pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
    },
};

use crate::health::probe::Trouble;

/// Whose certificates a check trusts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Those of the authorities that this host trusts.
    Host,
    /// Those of the authorities in a PEM file.
    File(PathBuf),
    /// Anybody's, for any name: the check says that somebody answers, not who.
    Anyone,
}

/// What is spoken within TLS (RFC 7301).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alpn {
    /// HTTP/1.1
    Http1,
    /// HTTP/2, as gRPC needs it.
    Http2,
}

/// TLS 1.2 or 1.3 to the targets of a check.
///
/// Files are read when it is made. One that cannot be used makes no target unhealthy: probes are not run, and say why.
#[derive(Clone)]
pub struct Tls(Arc<Inner>);

struct Inner {
    trust: Trust,
    /// What the file of `trust` held.
    pem: Vec<u8>,
    alpn: Alpn,
    name: Option<ServerName<'static>>,
    connector: Result<TlsConnector, Trouble>,
}

impl Tls {
    /// `name` is what certificates have to be for, and what is asked for (RFC 6066, SNI); without one they have to be for
    /// the target's address, and nothing is asked for.
    pub fn new(trust: Trust, name: Option<ServerName<'static>>, alpn: Alpn) -> Self {
        let (pem, read) = match &trust {
            Trust::File(path) => match fs::read(path) {
                Ok(pem) => (pem, Ok(())),
                Err(error) => (Vec::new(), Err(unusable(path, &error))),
            },
            Trust::Host | Trust::Anyone => (Vec::new(), Ok(())),
        };
        let connector = read.and_then(|()| connector(&trust, &pem, alpn));
        Self(Arc::new(Inner { trust, pem, alpn, name, connector }))
    }

    /// Why no probe can be run with it.
    pub fn trouble(&self) -> Option<&Trouble> {
        self.0.connector.as_ref().err()
    }

    /// How to connect to `address`, and by which name it is known there.
    pub(crate) fn towards(&self, address: IpAddr) -> Result<(&TlsConnector, ServerName<'static>), Trouble> {
        let name = self.0.name.clone().unwrap_or_else(|| ServerName::from(address));
        self.0.connector.as_ref().map(|connector| (connector, name)).map_err(Clone::clone)
    }
}

impl PartialEq for Tls {
    fn eq(&self, other: &Self) -> bool {
        let known = |it: &Self| (it.0.alpn, it.trouble().cloned());
        (&self.0.trust, &self.0.pem, &self.0.name) == (&other.0.trust, &other.0.pem, &other.0.name)
            && known(self) == known(other)
    }
}

impl Eq for Tls {}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { trust, alpn, name, .. } = &*self.0;
        f.debug_struct("Tls")
            .field("trust", trust)
            .field("alpn", alpn)
            .field("name", name)
            .finish_non_exhaustive()
    }
}

fn connector(trust: &Trust, pem: &[u8], alpn: Alpn) -> Result<TlsConnector, Trouble> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| Trouble::Tls(error.to_string().into()))?;
    let mut config = match trust {
        Trust::Host => builder.with_root_certificates(host_roots()?),
        Trust::File(path) => builder.with_root_certificates(roots_in(pem, path)?),
        Trust::Anyone => {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        }
    }
    .with_no_client_auth();
    config.alpn_protocols = vec![match alpn {
        Alpn::Http1 => b"http/1.1".to_vec(),
        Alpn::Http2 => b"h2".to_vec(),
    }];
    // A check is to find out whether a handshake works.
    config.resumption = Resumption::disabled();
    Ok(TlsConnector::from(Arc::new(config)))
}

fn roots_in(pem: &[u8], path: &Path) -> Result<Arc<RootCertStore>, Trouble> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|error| unusable(path, &error))?;
        roots.add(certificate).map_err(|error| unusable(path, &error))?;
    }
    if roots.is_empty() { Err(unusable(path, &"there is no certificate in it")) } else { Ok(Arc::new(roots)) }
}

/// Read once: there are more than a hundred of them, and as many services may ask for them.
fn host_roots() -> Result<Arc<RootCertStore>, Trouble> {
    static ROOTS: LazyLock<Arc<RootCertStore>> = LazyLock::new(|| {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        Arc::new(roots)
    });
    if ROOTS.is_empty() {
        let why = "this host trusts no authority (Debian's package `ca-certificates`): set `ca_file`";
        return Err(Trouble::Tls(why.into()));
    }
    Ok(Arc::clone(&ROOTS))
}

fn unusable(path: &Path, why: &dyn fmt::Display) -> Trouble {
    Trouble::Tls(format!("cannot use the certificates in {}: {why}", path.display()).into())
}

/// Takes any certificate, but only from somebody who has its key.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
