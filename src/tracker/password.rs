//! Argon2id, computed off the async threads, a few at a time, behind a bounded queue.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use argon2::password_hash::phc::{Output, ParamsString, PasswordHash, Salt};
use argon2::{Algorithm, Argon2, Block, Params, Version};
use tokio::sync::{mpsc, oneshot};

use super::message::Password;
use super::refusal::Refusal;
use crate::limits::{ARGON2_PARALLEL, ARGON2_QUEUE, MAX_PASSWORD_LEN, MIN_PASSWORD_LEN};

/// Bytes of a new salt and of a new hash: what the PHC string format recommends.
const SALT_LEN: usize = 16;
const OUTPUT_LEN: usize = 32;

/// Work for a hashing thread, in the memory it keeps for that.
type Job = Box<dyn FnOnce(&mut Vec<Block>) + Send>;

/// Computes and checks password hashes, on a few threads of its own that keep their 19 MiB each: an
/// allocator that is asked for them again and again ends up with several times as much.
#[derive(Debug)]
pub struct Passwords {
    jobs: mpsc::Sender<Job>,
    callers: AtomicUsize,
    /// What an unknown user's password is checked against, so that it costs the same.
    decoy: String,
}

impl Passwords {
    /// A hasher with an empty queue.
    pub fn new() -> Self {
        let decoy = hash(&Password("decoy".to_owned()), &mut Vec::new()).unwrap_or_default();
        let (jobs, queue) = mpsc::channel::<Job>(ARGON2_QUEUE + ARGON2_PARALLEL);
        let queue = Arc::new(Mutex::new(queue));
        for _ in 0..ARGON2_PARALLEL {
            let queue = queue.clone();
            // They end with the last sender.
            std::thread::spawn(move || {
                let mut memory = Vec::new();
                loop {
                    let job = queue.lock().unwrap_or_else(PoisonError::into_inner).blocking_recv();
                    let Some(job) = job else { return };
                    job(&mut memory);
                }
            });
        }
        Self { jobs, callers: AtomicUsize::new(0), decoy }
    }

    /// The PHC string of a new password.
    ///
    /// # Errors
    /// [`Refusal::BadPassword`], [`Refusal::Busy`].
    pub async fn hash(&self, password: Password) -> Result<String, Refusal> {
        if !(MIN_PASSWORD_LEN..=MAX_PASSWORD_LEN).contains(&password.0.len()) {
            return Err(Refusal::BadPassword);
        }
        self.queued(move |memory| hash(&password, memory)).await?.ok_or(Refusal::Internal)
    }

    /// Whether `password` belongs to `phc`; nobody's password belongs to `None`.
    ///
    /// # Errors
    /// [`Refusal::Busy`].
    pub async fn verify(&self, password: Password, phc: Option<String>) -> Result<bool, Refusal> {
        if password.0.len() > MAX_PASSWORD_LEN {
            return Ok(false);
        }
        let known = phc.is_some();
        let phc = phc.unwrap_or_else(|| self.decoy.clone());
        Ok(self.queued(move |memory| verify(&password, &phc, memory)).await? && known)
    }

    async fn queued<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Vec<Block>) -> T + Send + 'static,
    ) -> Result<T, Refusal> {
        let _caller = Caller::enter(&self.callers)?;
        let (answer, answered) = oneshot::channel();
        // Whoever asked may have gone.
        let job = Box::new(move |memory: &mut Vec<Block>| drop(answer.send(work(memory))));
        self.jobs.send(job).await.map_err(|_| Refusal::Internal)?;
        answered.await.map_err(|_| Refusal::Internal)
    }
}

impl Default for Passwords {
    fn default() -> Self {
        Self::new()
    }
}

/// A place in the queue; given back also when the caller goes away.
struct Caller<'a>(&'a AtomicUsize);

impl<'a> Caller<'a> {
    fn enter(callers: &'a AtomicUsize) -> Result<Self, Refusal> {
        let place = Self(callers);
        if callers.fetch_add(1, Ordering::Relaxed) >= ARGON2_QUEUE + ARGON2_PARALLEL {
            return Err(Refusal::Busy);
        }
        Ok(place)
    }
}

impl Drop for Caller<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn hash(password: &Password, memory: &mut Vec<Block>) -> Option<String> {
    let mut salt = [0; SALT_LEN];
    aws_lc_rs::rand::fill(&mut salt).ok()?;
    let salt = Salt::new(&salt).ok()?;
    let (algorithm, version, params) = Default::default();
    let hash = digest((algorithm, version, &params), password, &salt, OUTPUT_LEN, memory)?;
    let phc = PasswordHash {
        algorithm: algorithm.ident(),
        version: Some(version.into()),
        params: ParamsString::try_from(&params).ok()?,
        salt: Some(salt),
        hash: Some(hash),
    };
    Some(phc.to_string())
}

fn verify(password: &Password, phc: &str, memory: &mut Vec<Block>) -> bool {
    let mut matches = || {
        let phc = PasswordHash::new(phc).ok()?;
        let algorithm = Algorithm::try_from(phc.algorithm.as_str()).ok()?;
        let version = phc.version.map_or(Ok(Version::default()), Version::try_from).ok()?;
        let params = Params::try_from(&phc).ok()?;
        let (salt, expected) = (phc.salt?, phc.hash?);
        let rules = (algorithm, version, &params);
        // Compared in constant time.
        Some(digest(rules, password, &salt, expected.len(), memory)? == expected)
    };
    matches().unwrap_or(false)
}

fn digest(
    (algorithm, version, params): (Algorithm, Version, &Params),
    password: &Password,
    salt: &Salt,
    len: usize,
    memory: &mut Vec<Block>,
) -> Option<Output> {
    let argon2 = Argon2::new(algorithm, version, params.clone());
    memory.resize(params.block_count().max(memory.len()), Block::new());
    let mut out = [0; Output::MAX_LENGTH];
    let out = out.get_mut(..len)?;
    let blocks = &mut memory[..params.block_count()];
    argon2.hash_password_into_with_memory(password.0.as_bytes(), salt, out, blocks).ok()?;
    Output::new(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn password(text: &str) -> Password {
        Password(text.to_owned())
    }

    #[tokio::test]
    async fn only_the_right_password_verifies() {
        let passwords = Passwords::new();
        let phc = passwords.hash(password("secret")).await.expect("hashed");
        assert!(phc.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{phc}");
        assert_eq!(passwords.verify(password("secret"), Some(phc.clone())).await, Ok(true));
        assert_eq!(passwords.verify(password("Secret"), Some(phc)).await, Ok(false));
        assert_eq!(passwords.verify(password("decoy"), None).await, Ok(false));
        let (short, long) = (password("abc"), password(&"x".repeat(MAX_PASSWORD_LEN + 1)));
        assert_eq!(passwords.hash(short).await, Err(Refusal::BadPassword));
        assert_eq!(passwords.hash(long).await, Err(Refusal::BadPassword));
    }

    #[tokio::test]
    async fn a_full_queue_answers_busy() {
        let passwords = Passwords::new();
        let full = ARGON2_QUEUE + ARGON2_PARALLEL;
        let places: Vec<_> = (0..full).map(|_| Caller::enter(&passwords.callers)).collect();
        assert!(places.iter().all(Result::is_ok));
        assert_eq!(passwords.hash(password("secret")).await, Err(Refusal::Busy));
        drop(places);
        assert!(passwords.hash(password("secret")).await.is_ok());
    }
}
