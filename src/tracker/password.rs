//! Argon2id, computed off the async threads, a few at a time, behind a bounded queue.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use argon2::Argon2;
use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher as _, PasswordVerifier as _};
use tokio::sync::{mpsc, oneshot};

use super::message::Password;
use super::refusal::Refusal;
use crate::limits::{ARGON2_PARALLEL, ARGON2_QUEUE, MAX_PASSWORD_LEN, MIN_PASSWORD_LEN};

/// Work for a hashing thread.
type Job = Box<dyn FnOnce() + Send>;

/// Computes and checks password hashes, on a few threads of its own: the allocator keeps what each
/// thread needed, and 19 MiB for every thread of a pool would be much.
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
        let decoy = hash(&Password("decoy".to_owned())).unwrap_or_default();
        let (jobs, queue) = mpsc::channel::<Job>(ARGON2_QUEUE + ARGON2_PARALLEL);
        let queue = Arc::new(Mutex::new(queue));
        for _ in 0..ARGON2_PARALLEL {
            let queue = queue.clone();
            // They end with the last sender.
            std::thread::spawn(move || {
                loop {
                    let job = queue.lock().unwrap_or_else(PoisonError::into_inner).blocking_recv();
                    let Some(job) = job else { return };
                    job();
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
        self.queued(move || hash(&password)).await?.ok_or(Refusal::Internal)
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
        Ok(self.queued(move || verify(&password, &phc)).await? && known)
    }

    async fn queued<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Refusal> {
        let _caller = Caller::enter(&self.callers)?;
        let (answer, answered) = oneshot::channel();
        // Whoever asked may have gone.
        let job = Box::new(move || drop(answer.send(work())));
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

fn hash(password: &Password) -> Option<String> {
    Some(Argon2::default().hash_password(password.0.as_bytes()).ok()?.to_string())
}

fn verify(password: &Password, phc: &str) -> bool {
    PasswordHash::new(phc)
        .is_ok_and(|phc| Argon2::default().verify_password(password.0.as_bytes(), &phc).is_ok())
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
