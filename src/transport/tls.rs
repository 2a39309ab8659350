//! TLS 1.3, mutual, with peer ids instead of authorities.
//!
//! A verifier checks the handshake signature and that SHA-256 of the key is the peer id expected.
//! There is no mode that accepts anything else, no resumption and no 0-RTT.

use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ParsedCertificate};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, PeerIncompatible,
    SignatureScheme,
};

use super::identity::Identity;
use crate::peer_id::{PeerId, PublicKey};

/// The protocols mtq speaks; each name carries its version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alpn {
    /// Client to tracker.
    Tracker,
    /// Peer to peer.
    Peer,
    /// Tracker to tracker.
    Sync,
}

impl Alpn {
    /// The name in the handshake.
    pub fn name(self) -> &'static [u8] {
        match self {
            Self::Tracker => b"mtq-tracker/1",
            Self::Peer => b"mtq-peer/1",
            Self::Sync => b"mtq-sync/1",
        }
    }

    /// The protocol of this name.
    pub(super) fn named(name: &[u8]) -> Option<Self> {
        [Self::Tracker, Self::Peer, Self::Sync].into_iter().find(|alpn| alpn.name() == name)
    }
}

/// The public key in a certificate, if it is Ed25519.
pub(super) fn public_key_of(certificate: &CertificateDer<'_>) -> Option<PublicKey> {
    let parsed = ParsedCertificate::try_from(certificate).ok()?;
    PublicKey::from_spki(parsed.subject_public_key_info().as_ref())
}

/// The one provider, with AES-128-GCM first: the fastest where AES is in hardware.
fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites = vec![
        aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
        aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
        aws_lc_rs::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    Arc::new(provider)
}

/// TLS of a side that accepts: any device with an Ed25519 key may connect; who it is, is known
/// afterwards.
pub(super) fn server_config(
    identity: &Identity,
    alpns: &[Alpn],
) -> Result<rustls::ServerConfig, Error> {
    let provider = provider();
    let verifier = Arc::new(AnyDevice(provider.clone()));
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![identity.certificate()], identity.private_key().into())?;
    config.alpn_protocols = alpns.iter().map(|alpn| alpn.name().to_vec()).collect();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(config)
}

/// TLS of a side that dials, and the verifier that remembers whom it met.
pub(super) fn client_config(
    identity: &Identity,
    alpn: Alpn,
    expected: PeerId,
) -> Result<(rustls::ClientConfig, Arc<PinnedPeer>), Error> {
    let provider = provider();
    let verifier =
        Arc::new(PinnedPeer { expected, found: Mutex::new(None), provider: provider.clone() });
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier.clone())
        .with_client_auth_cert(vec![identity.certificate()], identity.private_key().into())?;
    config.alpn_protocols = vec![alpn.name().to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config.enable_sni = false;
    Ok((config, verifier))
}

/// Accepts exactly one peer id.
#[derive(Debug)]
pub(super) struct PinnedPeer {
    expected: PeerId,
    found: Mutex<Option<PeerId>>,
    provider: Arc<CryptoProvider>,
}

impl PinnedPeer {
    /// The peer id met in place of the expected one.
    pub(super) fn stranger(&self) -> Option<PeerId> {
        let found = *self.found.lock().unwrap_or_else(PoisonError::into_inner);
        found.filter(|id| *id != self.expected)
    }
}

impl ServerCertVerifier for PinnedPeer {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let key = public_key_of(end_entity).ok_or(CertificateError::BadEncoding)?;
        let found = key.peer_id();
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = Some(found);
        if found == self.expected {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

/// Accepts any device that proves an Ed25519 key.
#[derive(Debug)]
struct AnyDevice(Arc<CryptoProvider>);

impl ClientCertVerifier for AnyDevice {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        public_key_of(end_entity)
            .map(|_| ClientCertVerified::assertion())
            .ok_or_else(|| CertificateError::BadEncoding.into())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}
