//! Real ends of QUIC: servers that write their names into connection ids, and clients that change their addresses.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use lb_common::hash::mix;
use lb_common::quic::Codec;
use lb_tests::Namespace;
use quinn::rustls::RootCertStore;
use quinn::rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use quinn::{
    ClientConfig, Connection, ConnectionId, ConnectionIdGenerator, Endpoint, EndpointConfig, IdleTimeout,
    ServerConfig, TokioRuntime, TransportConfig,
};
use tokio::runtime::Runtime;

/// What the servers' certificate is for.
const NAME: &str = "quic.test";

/// Writes a server's name into connection ids.
struct Names {
    codec: Codec,
    server_id: Vec<u8>,
}

/// So that no two ids are the same.
static NONCES: AtomicU64 = AtomicU64::new(1);

impl ConnectionIdGenerator for Names {
    fn generate_cid(&mut self) -> ConnectionId {
        let seed = NONCES.fetch_add(1, Ordering::Relaxed);
        let bytes = [mix(seed), mix(mix(seed)), mix(!seed)].map(u64::to_ne_bytes).concat();
        let nonce = &bytes[..usize::from(self.codec.nonce_length)];
        let id = self.codec.encode(&self.server_id, nonce).expect("a server id of this codec's length");
        ConnectionId::new(&id)
    }

    fn cid_len(&self) -> usize {
        1 + usize::from(self.codec.server_id_length) + usize::from(self.codec.nonce_length)
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// What ends of QUIC share.
pub struct Peers {
    runtime: Runtime,
    certificate: CertificateDer<'static>,
    key: PrivatePkcs8KeyDer<'static>,
    servers: Vec<Endpoint>,
}

impl Peers {
    /// Without any server yet.
    pub fn new() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let made = rcgen::generate_simple_self_signed(vec![NAME.to_owned()])?;
        let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        Ok(Self { runtime, certificate: made.cert.der().clone(), key, servers: Vec::new() })
    }

    /// A server that answers every stream with its name. It ends with this value.
    pub fn serve(
        &mut self,
        host: &Namespace,
        at: SocketAddr,
        name: &str,
        ids: Option<(Codec, &[u8])>,
    ) -> Result<()> {
        let socket = host.run(|| UdpSocket::bind(at)).with_context(|| format!("no QUIC server at {at}"))?;
        let mut config = EndpointConfig::default();
        if let Some((codec, server_id)) = ids {
            let server_id = server_id.to_vec();
            config.cid_generator(move || Box::new(Names { codec, server_id: server_id.clone() }));
        }
        let server =
            ServerConfig::with_single_cert(vec![self.certificate.clone()], self.key.clone_key().into())?;
        let _entered = self.runtime.enter();
        let endpoint = Endpoint::new(config, Some(server), socket, Arc::new(TokioRuntime))?;
        self.servers.push(endpoint.clone());
        self.runtime.spawn(answer(endpoint, name.to_owned()));
        Ok(())
    }

    /// A client with a connection. `first_id`: what it calls the server until that has named itself.
    pub fn connect(
        &self,
        socket: UdpSocket,
        to: SocketAddr,
        first_id: Option<Vec<u8>>,
    ) -> Result<Client<'_>> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone())?;
        let mut config = ClientConfig::with_root_certificates(Arc::new(roots))?;
        let mut transport = TransportConfig::default();
        transport.max_idle_timeout(Some(IdleTimeout::try_from(PATIENCE)?));
        config.transport_config(Arc::new(transport));
        if let Some(id) = first_id {
            config.initial_dst_cid_provider(Arc::new(move || ConnectionId::new(&id)));
        }
        let _entered = self.runtime.enter();
        let endpoint = Endpoint::new(EndpointConfig::default(), None, socket, Arc::new(TokioRuntime))?;
        let connecting = endpoint.connect_with(config, to, NAME)?;
        let connection = self.runtime.block_on(connecting).context("no handshake")?;
        Ok(Client { peers: self, endpoint, connection })
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        self.servers.iter().for_each(|server| server.close(0u32.into(), b""));
    }
}

async fn answer(endpoint: Endpoint, name: String) {
    while let Some(incoming) = endpoint.accept().await {
        let name = name.clone();
        tokio::spawn(async move {
            let Ok(connection) = incoming.await else { return };
            while let Ok((mut send, mut receive)) = connection.accept_bi().await {
                // Whoever has gone does not hear it.
                let _ = receive.read_to_end(64).await;
                let _ = send.write_all(name.as_bytes()).await;
                let _ = send.finish();
            }
        });
    }
}

/// After so long without an answer a connection is lost.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// A connection.
pub struct Client<'a> {
    peers: &'a Peers,
    endpoint: Endpoint,
    connection: Connection,
}

impl Client<'_> {
    /// Asks, on the connection that there is, who is at its other end.
    pub fn ask(&self) -> Result<String> {
        let question = async {
            let (mut send, mut receive) = self.connection.open_bi().await?;
            send.write_all(b"who?").await?;
            send.finish()?;
            Ok(String::from_utf8(receive.read_to_end(64).await?)?)
        };
        self.peers.runtime.block_on(async { tokio::time::timeout(2 * PATIENCE, question).await })?
    }

    /// Goes on from another address or port.
    pub fn move_to(&self, socket: UdpSocket) -> Result<()> {
        let _entered = self.peers.runtime.enter();
        Ok(self.endpoint.rebind(socket)?)
    }
}
