//! A device's Ed25519 key, where it is kept, and the certificate made around it.
//!
//! The key file is created 0600 and refused when others may read it. The key is never printed.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rcgen::{CertificateParams, KeyPair, PublicKeyData as _, SerialNumber, SigningKey as _};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};

use crate::peer_id::{PeerId, PublicKey, Signature};

/// The file name of an identity inside a data directory.
pub const FILE_NAME: &str = "identity.pem";

/// A key file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// Reading or writing failed.
    #[error("{path}: {error}")]
    Io {
        /// The key file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// It holds something else than an Ed25519 key in PKCS #8 PEM.
    #[error("{0}: not an Ed25519 private key in PEM form")]
    NotAKey(PathBuf),
    /// Others may read it.
    #[error("{path}: permissions {mode:o} let others read this private key")]
    Exposed {
        /// The key file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
}

/// A device's key pair and certificate.
pub struct Identity {
    key: KeyPair,
    public_key: PublicKey,
    certificate: CertificateDer<'static>,
}

impl Identity {
    /// A new random identity.
    ///
    /// # Panics
    /// When the system has no randomness.
    pub fn generate() -> Self {
        let key = KeyPair::generate_for(&rcgen::PKCS_ED25519)
            .expect("invariant: the system gives random bytes");
        Self::from_key(key).expect("invariant: a fresh Ed25519 key makes a certificate")
    }

    /// Reads a key file.
    ///
    /// # Errors
    /// [`IdentityError`] when it is missing, exposed to others, or no Ed25519 key.
    pub fn load(path: &Path) -> Result<Self, IdentityError> {
        let io = |error| IdentityError::Io { path: path.to_owned(), error };
        let mode = fs::metadata(path).map_err(io)?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(IdentityError::Exposed { path: path.to_owned(), mode });
        }
        let pem = zeroize::Zeroizing::new(fs::read_to_string(path).map_err(io)?);
        KeyPair::from_pem(&pem)
            .ok()
            .and_then(Self::from_key)
            .ok_or_else(|| IdentityError::NotAKey(path.to_owned()))
    }

    /// Writes the key to a new file, 0600, whole or not at all; never over an existing one.
    ///
    /// # Errors
    /// [`IdentityError::Io`].
    pub fn save_new(&self, path: &Path) -> Result<(), IdentityError> {
        let io = |error| IdentityError::Io { path: path.to_owned(), error };
        let mut unfinished = path.as_os_str().to_owned();
        unfinished.push(format!(".{}", std::process::id()));
        let unfinished = PathBuf::from(unfinished);
        let pem = zeroize::Zeroizing::new(self.key.serialize_pem());
        let written = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&unfinished)
            .and_then(|mut file| file.write_all(pem.as_bytes()).and_then(|()| file.sync_all()))
            // A link is refused where the name is taken.
            .and_then(|()| fs::hard_link(&unfinished, path));
        let _ = fs::remove_file(&unfinished);
        written.map_err(io)
    }

    /// The identity kept in `path`, made there if there is none.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub fn load_or_create(path: &Path) -> Result<Self, IdentityError> {
        if path.try_exists().unwrap_or(true) {
            return Self::load(path);
        }
        let identity = Self::generate();
        identity.save_new(path)?;
        Ok(identity)
    }

    fn from_key(key: KeyPair) -> Option<Self> {
        let public_key = PublicKey::from_spki(&key.subject_public_key_info())?;
        let mut params = CertificateParams::new(vec!["mtq".to_owned()]).ok()?;
        params.distinguished_name.push(rcgen::DnType::CommonName, "mtq");
        // Peers read nothing but the key; a fixed serial keeps the certificate's size the same.
        params.serial_number = Some(SerialNumber::from(1u64));
        let certificate = params.self_signed(&key).ok()?.der().clone();
        Some(Self { key, public_key, certificate })
    }

    /// The public key.
    pub fn public_key(&self) -> PublicKey {
        self.public_key
    }

    /// What others pin.
    pub fn peer_id(&self) -> PeerId {
        self.public_key.peer_id()
    }

    /// Signs `message`.
    ///
    /// # Panics
    /// Never: Ed25519 signing has no failure.
    pub fn sign(&self, message: &[u8]) -> Signature {
        let bytes = self.key.sign(message).expect("invariant: Ed25519 signing cannot fail");
        Signature(bytes.try_into().expect("invariant: an Ed25519 signature has 64 bytes"))
    }

    /// The self-signed certificate.
    pub(super) fn certificate(&self) -> CertificateDer<'static> {
        self.certificate.clone()
    }

    /// The private key for TLS.
    pub(super) fn private_key(&self) -> PrivatePkcs8KeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.serialize_der())
    }

    /// A secret of 32 bytes for `purpose`, the same after every restart.
    pub(super) fn derived_secret(&self, purpose: &str) -> [u8; 32] {
        // An Ed25519 signature is deterministic and nobody else can make it.
        let signature = self.sign(format!("mtq derived secret 1\0{purpose}").as_bytes());
        crate::hash::blake3(&signature.0).0
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identity({})", self.peer_id().short())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_created_once_private_and_read_back() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join(FILE_NAME);
        let first = Identity::load_or_create(&path).expect("created");
        let mode = fs::metadata(&path).expect("exists").permissions().mode() & 0o777;
        assert_eq!(mode, 0o600);
        let again = Identity::load_or_create(&path).expect("loaded");
        assert_eq!(first.peer_id(), again.peer_id());
        assert_eq!(first.derived_secret("a"), again.derived_secret("a"));
        assert_ne!(first.derived_secret("a"), first.derived_secret("b"));
        assert!(again.public_key().verifies(b"m", &first.sign(b"m")));
        assert!(first.save_new(&path).is_err(), "an existing key is never overwritten");
    }

    #[test]
    fn exposed_and_foreign_files_are_refused() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("key");
        Identity::generate().save_new(&path).expect("saved");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("chmod");
        assert!(matches!(Identity::load(&path), Err(IdentityError::Exposed { mode: 0o644, .. })));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("chmod");
        for junk in ["", "hello", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"]
        {
            fs::write(&path, junk).expect("written");
            assert!(matches!(Identity::load(&path), Err(IdentityError::NotAKey(_))), "{junk}");
        }
    }
}
