//! Whom a token stands for, wherever it is shown: over HTTP, or as the password of an MQTT client.
//!
//! A token is verified by Argon2id once, then it is known by its SHA-256 for a while; so checking it again costs nothing, and
//! inventing tokens costs the one who does it his address's patience and us two computations at a time.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use access::users::{self, Principal, Refusal, Users};
use parking_lot::Mutex;
use ring::digest::{SHA256, digest};
use tokio::sync::Semaphore;

use crate::clock::Clock;
use crate::rates::Rates;

/// How long a token that was verified is known by its SHA-256. Whether it is revoked or expired is looked at each time.
const KNOWN_FOR: Duration = Duration::from_secs(300);

/// Tokens that are known at a time.
const KNOWN: usize = 1024;

/// Verifications at a time: each takes a core for tens of milliseconds, and 19 MiB.
const VERIFYING: usize = 2;

/// How long somebody waits for the turn to be verified.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// Why a token does not count now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoLogin {
    /// It is none that counts.
    Refused(Refusal),
    /// Too many tokens of this address were none. Wait so long.
    TooOften(Duration),
    /// Too many are being verified.
    Busy,
}

/// Verifies tokens.
pub struct Login {
    users: Arc<Users>,
    clock: Clock,
    known: Mutex<HashMap<[u8; 32], (String, Instant)>>,
    verifying: Semaphore,
    failures: Rates<IpAddr>,
}

impl Login {
    /// `failed`: how many tokens a minute of one address may be none.
    pub fn new(users: Arc<Users>, clock: Clock, failed: u32) -> Self {
        let failed = f64::from(failed);
        let failures = Rates::new(failed / 60.0, failed);
        Self { users, clock, known: Mutex::default(), verifying: Semaphore::new(VERIFYING), failures }
    }

    /// The users.
    pub(crate) fn users(&self) -> &Arc<Users> {
        &self.users
    }

    /// Whether an address may try (again); else how long it has to wait.
    pub(crate) fn may_try(&self, address: IpAddr) -> Result<(), Duration> {
        self.failures.look(address, Instant::now())
    }

    /// What an address has shown was worth nothing.
    pub(crate) fn failed(&self, address: IpAddr) {
        let _ = self.failures.take(address, Instant::now());
    }

    /// Whom a token stands for.
    pub(crate) async fn principal(&self, token: &str, address: IpAddr) -> Result<Principal, NoLogin> {
        let mut key = [0; 32];
        key.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
        let now = Instant::now();
        let known = self.known.lock().get(&key).filter(|(_, until)| *until > now).map(|(id, _)| id.clone());
        if let Some(id) = known {
            return self.users.look(|state| state.principal(&id, (self.clock)())).map_err(NoLogin::Refused);
        }
        self.may_try(address).map_err(NoLogin::TooOften)?;
        let verified = self.verify(token).await?;
        if verified.is_err() {
            self.failed(address);
        }
        let principal = verified.map_err(NoLogin::Refused)?;
        if let Some((id, _)) = users::parts(token) {
            let mut known = self.known.lock();
            if known.len() >= KNOWN {
                known.retain(|_, (_, until)| *until > now);
            }
            if known.len() >= KNOWN {
                known.clear();
            }
            known.insert(key, (id.to_owned(), now + KNOWN_FOR));
        }
        Ok(principal)
    }

    async fn verify(&self, token: &str) -> Result<Result<Principal, Refusal>, NoLogin> {
        // What does not even look like a token, or has an id that nobody knows, costs nothing.
        let now = (self.clock)();
        let id = users::parts(token).map(|(id, _)| id);
        let sight = id.ok_or(Refusal::Unknown).and_then(|id| self.users.look(|state| state.principal(id, now)));
        if let Err(refusal) = sight {
            return Ok(Err(refusal));
        }
        let turn = tokio::time::timeout(PATIENCE, self.verifying.acquire()).await;
        let Ok(Ok(_turn)) = turn else { return Err(NoLogin::Busy) };
        let (users, token) = (self.users.clone(), token.to_owned());
        let verified = tokio::task::spawn_blocking(move || users.verify(&token, now)).await;
        verified.map_err(|_| NoLogin::Busy)
    }
}
