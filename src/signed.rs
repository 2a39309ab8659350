//! Bytes signed by a device: a body, and an Ed25519 signature over a domain tag and that body.
//!
//! The tag keeps a signature made for one purpose from passing for another. Who the signer is, the
//! body says; whether to believe it, the caller decides.

use serde::{Deserialize, Serialize};

use crate::peer_id::{PublicKey, Signature};
use crate::wire::{self, DecodeError};

/// A body and the signature that came with it.
#[derive(Serialize, Deserialize)]
pub struct Signed {
    body: Vec<u8>,
    signature: Signature,
}

impl Signed {
    /// Signs `body` for the purpose `domain`; returns wire bytes.
    pub fn seal<T: Serialize>(
        domain: &[u8],
        body: &T,
        sign: &dyn Fn(&[u8]) -> Signature,
    ) -> Vec<u8> {
        let body = wire::encode(body);
        let signature = sign(&[domain, &body].concat());
        wire::encode(&Self { body, signature })
    }

    /// Parses wire bytes; nothing is verified yet.
    ///
    /// # Errors
    /// [`DecodeError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, DecodeError> {
        wire::decode(bytes)
    }

    /// The body, of whoever it is.
    ///
    /// # Errors
    /// [`DecodeError`].
    pub fn body<T: serde::de::DeserializeOwned>(&self) -> Result<T, DecodeError> {
        wire::decode(&self.body)
    }

    /// Whether `signer` signed this body for the purpose `domain`.
    pub fn is_by(&self, signer: &PublicKey, domain: &[u8]) -> bool {
        signer.verifies(&[domain, &self.body].concat(), &self.signature)
    }
}
