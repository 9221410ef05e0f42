//! HTTP within TLS, and servers that have certificates.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use lb_userspace::health::{
    Alpn, Check, CheckKind, Failure, FailureKind, HttpCheck, Miss, Tls, Trouble, Trust, probe,
};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::sleep,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{ServerConfig, crypto::ring, pki_types::PrivateKeyDer},
};

use crate::support::{Reply, listen, serve, timing};

/// An authority, and its certificate in a file.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    directory: tempfile::TempDir,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let key = KeyPair::generate().expect("keys can be made");
        let mut params = CertificateParams::new(vec![]).expect("no names");
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).expect("it signs itself");
        let directory = tempfile::tempdir().expect("a directory");
        std::fs::write(directory.path().join("ca.pem"), certificate.pem()).expect("it can be written");
        Self { issuer: Issuer::new(params, key), directory }
    }

    pub fn file(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    /// A server's end of TLS, with a certificate for these names or addresses.
    pub fn acceptor(&self, names: &[&str], alpn: &[u8]) -> TlsAcceptor {
        let key = KeyPair::generate().expect("keys can be made");
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let params = CertificateParams::new(names).expect("names");
        let certificate = params.signed_by(&key, &self.issuer).expect("it is signed");
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("the provider can do them")
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::try_from(key.serialize_der()).expect("a key"),
            )
            .expect("key and certificate belong together");
        config.alpn_protocols = vec![alpn.to_vec()];
        TlsAcceptor::from(Arc::new(config))
    }
}

pub fn tls(trust: Trust, name: Option<&str>, alpn: Alpn) -> Tls {
    let name = name.map(|name| name.to_owned().try_into().expect("a name"));
    Tls::new(trust, name, alpn)
}

fn https(tls: Tls) -> Check {
    let check = HttpCheck::new("/", None, "200".parse().expect("a status")).expect("a path").within(tls);
    Check { kind: CheckKind::Http(Arc::new(check)), timing: timing(1000, 800, 1, 1) }
}

/// Answers each request with 200, a byte at a time if it is slow.
async fn server(acceptor: TlsAcceptor, slowness: Duration) -> SocketAddr {
    let (listener, address) = listen().await;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut stream = acceptor.accept(stream).await?;
                let _ = stream.read(&mut [0; 1024]).await?;
                for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok" {
                    stream.write_all(&[*byte]).await?;
                    sleep(slowness).await;
                }
                stream.shutdown().await
            });
        }
    });
    address
}

async fn outcome(address: SocketAddr, tls: Tls) -> Result<(), Miss> {
    probe(address, &https(tls), None).await.outcome
}

fn assert_no_tls(outcome: Result<(), Miss>, words: &str) {
    let Err(Miss::Failed(failure)) = outcome else { panic!("{outcome:?}") };
    assert_eq!(failure.kind(), FailureKind::Tls);
    assert!(failure.to_string().contains(words), "{failure}");
}

#[tokio::test]
async fn a_certificate_has_to_be_for_the_name_and_by_the_authority() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let address = server(ours.acceptor(&["shop.example", "127.0.0.1"], b"http/1.1"), Duration::ZERO).await;
    let trusting = |authority: &Authority, name| tls(Trust::File(authority.file()), name, Alpn::Http1);

    assert_eq!(outcome(address, trusting(&ours, Some("shop.example"))).await, Ok(()));
    assert_eq!(outcome(address, trusting(&ours, None)).await, Ok(()), "it is for the address too");
    assert_no_tls(outcome(address, trusting(&ours, Some("mail.example"))).await, "mail.example");
    assert_no_tls(outcome(address, trusting(&theirs, Some("shop.example"))).await, "UnknownIssuer");
    assert_no_tls(
        outcome(address, tls(Trust::Host, Some("shop.example"), Alpn::Http1)).await,
        "UnknownIssuer",
    );
    for name in [Some("mail.example"), None] {
        assert_eq!(outcome(address, tls(Trust::Anyone, name, Alpn::Http1)).await, Ok(()));
    }
}

#[tokio::test]
async fn a_certificate_for_a_name_is_not_for_the_address() {
    let ours = Authority::new("ours");
    let address = server(ours.acceptor(&["shop.example"], b"http/1.1"), Duration::ZERO).await;
    let tls = tls(Trust::File(ours.file()), None, Alpn::Http1);
    assert_no_tls(outcome(address, tls).await, "127.0.0.1");
}

#[tokio::test]
async fn what_speaks_no_tls_or_no_http_in_it_is_said_to() {
    let ours = Authority::new("ours");
    let trust = || tls(Trust::File(ours.file()), Some("shop.example"), Alpn::Http1);

    let (listener, address) = listen().await;
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await?;
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").await
    });
    assert_no_tls(outcome(address, trust()).await, "corrupt message");

    let address = server(ours.acceptor(&["shop.example"], b"h2"), Duration::ZERO).await;
    assert_no_tls(outcome(address, trust()).await, "NoApplicationProtocol");

    let (listener, address) = listen().await;
    drop(listener);
    assert_eq!(outcome(address, trust()).await, Err(Miss::Failed(Failure::ConnectRefused)));
}

#[tokio::test]
async fn silence_and_drips_within_tls_hit_the_timeout() {
    let ours = Authority::new("ours");
    let check = https(tls(Trust::File(ours.file()), Some("shop.example"), Alpn::Http1));

    let (listener, silent) = listen().await;
    serve(listener, Reply::ThenSilence(""));
    let slow = server(ours.acceptor(&["shop.example"], b"http/1.1"), Duration::from_millis(50)).await;
    for address in [silent, slow] {
        let result = probe(address, &check, None).await;
        assert_eq!(result.outcome, Err(Miss::Failed(Failure::Timeout)));
        assert!(result.duration < Duration::from_secs(5), "{:?}", result.duration);
    }
}

#[tokio::test]
async fn a_file_that_cannot_be_used_says_nothing_about_the_target() {
    let (ours, empty) = (Authority::new("ours"), tempfile::NamedTempFile::new().expect("a file"));
    let address = server(ours.acceptor(&["shop.example"], b"http/1.1"), Duration::ZERO).await;
    for (file, why) in
        [(PathBuf::from("/nonexistent/ca.pem"), "No such file"), (empty.path().into(), "no certificate")]
    {
        let outcome =
            outcome(address, tls(Trust::File(file.clone()), Some("shop.example"), Alpn::Http1)).await;
        let Err(Miss::NotRun(Trouble::Tls(text))) = &outcome else { panic!("{outcome:?}") };
        assert!(text.contains(&file.display().to_string()) && text.contains(why), "{text}");
    }
}

#[tokio::test]
async fn a_file_with_other_certificates_is_another_check() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let file = theirs.file();
    let before = tls(Trust::File(file.clone()), None, Alpn::Http1);
    assert_eq!(before, tls(Trust::File(file.clone()), None, Alpn::Http1));
    std::fs::copy(ours.file(), &file).expect("it can be copied");
    assert_ne!(before, tls(Trust::File(file), None, Alpn::Http1));
}
