//! Who a device is: its Ed25519 public key, and the peer id that TLS pins.

use crate::hash::fixed_bytes;

/// DER of an Ed25519 SubjectPublicKeyInfo up to the 32 key bytes (RFC 8410, section 4).
const ED25519_SPKI_PREFIX: [u8; 12] =
    [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

fixed_bytes! {
    /// SHA-256 of a device's public key (its DER SubjectPublicKeyInfo).
    PeerId, 32
}

fixed_bytes! {
    /// A raw Ed25519 public key.
    PublicKey, 32
}

fixed_bytes! {
    /// An Ed25519 signature.
    Signature, 64
}

impl PublicKey {
    /// The key inside a DER SubjectPublicKeyInfo; nothing unless it is Ed25519.
    pub fn from_spki(spki: &[u8]) -> Option<Self> {
        let key = spki.strip_prefix(&ED25519_SPKI_PREFIX)?;
        Some(Self(key.try_into().ok()?))
    }

    /// The DER SubjectPublicKeyInfo.
    pub fn spki(&self) -> Vec<u8> {
        [&ED25519_SPKI_PREFIX[..], &self.0].concat()
    }

    /// The peer id of the device that holds this key.
    pub fn peer_id(&self) -> PeerId {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &self.spki());
        PeerId(digest.as_ref().try_into().expect("invariant: SHA-256 has 32 bytes"))
    }

    /// Whether `signature` is this key's over `message`.
    pub fn verifies(&self, message: &[u8], signature: &Signature) -> bool {
        aws_lc_rs::signature::UnparsedPublicKey::new(&aws_lc_rs::signature::ED25519, &self.0)
            .verify(message, &signature.0)
            .is_ok()
    }
}

#[cfg(test)]
pub(crate) mod testing {
    //! Keys for tests of everything signed.

    use super::*;
    use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};

    /// A key pair from a seed byte, and its signing function.
    pub(crate) fn key(seed: u8) -> (PublicKey, impl Fn(&[u8]) -> Signature) {
        let pair = Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).expect("32 bytes");
        let public = PublicKey(pair.public_key().as_ref().try_into().expect("32 bytes"));
        (public, move |m: &[u8]| Signature(pair.sign(m).as_ref().try_into().expect("64 bytes")))
    }
}

#[cfg(test)]
mod tests {
    use super::testing::key;
    use super::*;

    #[test]
    fn spki_round_trip_and_signatures() {
        let (public, sign) = key(7);
        assert_eq!(PublicKey::from_spki(&public.spki()), Some(public));
        assert_eq!(PublicKey::from_spki(&public.spki()[1..]), None);
        assert_eq!(PublicKey::from_spki(&[0; 44]), None);
        let signature = sign(b"message");
        assert!(public.verifies(b"message", &signature));
        assert!(!public.verifies(b"massage", &signature));
        assert!(!key(8).0.verifies(b"message", &signature));
        assert_ne!(public.peer_id(), key(8).0.peer_id());
    }
}
