//! How the connection ids of QUIC name backends: the tables of draft-ietf-quic-load-balancers.

use super::read::{Maybe, Tables, table};
use super::value::{Count, QuicKey, Truth};

table! {
    /// How connection ids name the backends of a QUIC service (draft-ietf-quic-load-balancers), so that a client that changes its
    /// address keeps its backend.
    Quic from QuicDraft "[service.quic]" {
        /// Whether every server writes the length of an id, less 1, into the last five bits of its first octet. Then fewer ids that
        /// are no server's are taken for one's.
        length_in_first_octet: bool as Truth = false,
        /// How ids are read: one for each configuration that servers may still have.
        configs @ "config": Vec<QuicConfig> as Tables<QuicConfig>,
    }
}

table! {
    /// How connection ids with certain first three bits are read.
    QuicConfig from QuicConfigDraft "[[service.quic.config]]" {
        /// What the first three bits of an id say.
        id: u32 as Count<0, 6>,
        /// Bytes of a server id, which follows the first octet.
        server_id_length: u32 as Count<1, 15>,
        /// Bytes of the nonce, which follows the server id. Both together have 19 at most.
        nonce_length: u32 as Count<4, 18>,
        /// The AES-128 key that both are encrypted with, 32 hexadecimal digits. Without it everybody can see which server a
        /// connection is with.
        key: Option<QuicKey> as Maybe<QuicKey> = None,
    }
}

impl QuicConfigDraft {
    /// Bytes of server id and nonce, unless either is lost.
    pub(super) fn length(&self) -> Option<u32> {
        Some(self.server_id_length.value? + self.nonce_length.value?)
    }
}

impl QuicDraft {
    pub(super) fn configs(&self) -> &[QuicConfigDraft] {
        self.configs.value.as_deref().unwrap_or_default()
    }
}
