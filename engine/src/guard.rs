//! Who gets in at the device listener: certificates against the registry, from the handshake to the last frame.
//!
//! The TLS verifier looks at chain, dates and the list of revocations; here it is decided what a certificate that passed it
//! stands for, and whether it still counts. Every connection asks again when the registry has changed, before it handles
//! another packet.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use access::audit::{Act, Audit};
use access::journal::JournalError;
use access::leaf::Leaf;
use access::registry::{Entry, Fact, Refusal, Registry, RegistryError, State};
use access::subject::Subject;
use access::users::Users;
use bytes::Bytes;
use device::id::DeviceId;
use device::renewal::renewal_due;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::gateway::{Identity, Peer};
use crate::provision::Provisioning;
use crate::renewal::{Asker, Renewals};

/// How often the registry's file is looked at, for what commands beside the engine have written.
const FOLLOW: Duration = Duration::from_millis(200);

/// Why a certificate opens nothing here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoEntry {
    /// The registry says no.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// It names a user that there is not, or not any more.
    #[error("there is no such user")]
    NoUser,
    /// It names nobody who speaks MQTT.
    #[error("this certificate names no device, user or claim of this engine")]
    Nobody,
    /// It came to the listener for devices whose certificates have expired, and is no device.
    #[error("only devices renew their certificates here")]
    NoDevice,
}

impl NoEntry {
    /// A word for logs and counters.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Refused(refusal) => refusal.code(),
            Self::NoUser => "no_such_user",
            Self::Nobody => "nobody",
            Self::NoDevice => "no_device",
        }
    }

    /// What a client is told.
    pub fn text(&self) -> &'static str {
        match self {
            Self::Refused(Refusal::Unknown) => "this certificate was not issued here",
            Self::Refused(Refusal::Revoked(_)) => "this certificate is revoked",
            Self::Refused(Refusal::Replaced) => "this certificate was replaced by a newer one",
            Self::Refused(Refusal::Lapsed) => "this certificate was not used in time; ask for another",
            Self::Refused(Refusal::Barred(_)) => "this device is barred",
            Self::NoUser => "there is no such user",
            Self::Nobody => "this certificate names no device, user or claim of this engine",
            Self::NoDevice => "only devices renew their certificates here",
        }
    }
}

/// The registry, as the gateway asks it.
pub struct Guard {
    registry: Arc<Registry>,
    tenant: String,
    clock: Clock,
    audit: Arc<Audit>,
    users: Arc<Users>,
    revision: AtomicU64,
    provisioning: Provisioning,
    renewals: Renewals,
    /// Requests for certificates that are worked on at one time: each signs, and writes a file or two.
    asking: Semaphore,
}

impl std::fmt::Debug for Guard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guard").field("tenant", &self.tenant).finish_non_exhaustive()
    }
}

impl Guard {
    /// A guard over this registry, for certificates of this tenant.
    pub(crate) fn new(
        registry: Arc<Registry>,
        tenant: String,
        clock: Clock,
        (audit, users): (Arc<Audit>, Arc<Users>),
        (provisioning, renewals): (Provisioning, Renewals),
    ) -> Arc<Self> {
        Arc::new(Self {
            registry,
            tenant,
            clock,
            audit,
            users,
            revision: AtomicU64::new(0),
            provisioning,
            renewals,
            asking: Semaphore::new(4),
        })
    }

    /// Changes whenever an answer of this guard may have changed.
    pub fn revision(&self) -> u64 {
        self.revision.load(Ordering::Acquire)
    }

    /// What has changed must be visible to every connection before the next packet of it is handled.
    pub fn changed(&self) {
        self.revision.fetch_add(1, Ordering::AcqRel);
    }

    /// Who it is that showed this certificate (DER), which the TLS verifier has accepted.
    pub fn identify(&self, certificate: &[u8]) -> Result<Identity, NoEntry> {
        let leaf = Leaf::read(certificate).map_err(|_| NoEntry::Nobody)?;
        let subject = leaf.uris.iter().find_map(|uri| Subject::parse(uri, &self.tenant)).ok_or(NoEntry::Nobody)?;
        self.standing(&leaf.serial, subject)
    }

    /// The same at the listener for devices whose certificates have expired: they may renew them, and nothing else.
    pub fn identify_expired(&self, certificate: &[u8]) -> Result<Identity, NoEntry> {
        let identity = self.identify(certificate)?;
        match identity.certificate() {
            Some((_, Subject::Device(_))) => Ok(identity.recovering()),
            _ => Err(NoEntry::NoDevice),
        }
    }

    /// Who somebody is now that was let in before.
    pub fn again(&self, identity: &Identity) -> Result<Identity, NoEntry> {
        let Some((serial, subject)) = identity.certificate() else { return Ok(identity.clone()) };
        let now = self.standing(serial, subject.clone())?;
        Ok(if identity.recovers() { now.recovering() } else { now })
    }

    fn standing(&self, serial: &str, subject: Subject) -> Result<Identity, NoEntry> {
        let now = (self.clock)();
        self.registry.look(|state| match subject {
            Subject::Device(id) => {
                state.standing(serial, Some(id.as_str()), now)?;
                let children = state.children(id.as_str()).into_iter().flatten();
                let children = children.filter(|child| state.barred(child).is_none());
                let children = children.filter_map(|child| DeviceId::new(child).ok()).collect();
                let entry = state.certificate(serial).filter(|entry| entry.ends.is_none());
                let due = entry.map(|entry| &entry.certificate);
                let due = due.map(|it| renewal_due(it.not_before, it.not_after, &id));
                Ok(Identity::device(id, serial.to_owned(), children).due(due))
            }
            Subject::Server => Err(NoEntry::Nobody),
            Subject::Claim(group) => {
                state.standing(serial, None, now)?;
                Ok(Identity::claim(group, serial.to_owned()))
            }
            Subject::User(name) => {
                state.standing(serial, None, now)?;
                let role = self.users.look(|users| users.role(&name)).ok_or(NoEntry::NoUser)?;
                Ok(Identity::user(name, serial.to_owned(), role))
            }
        })
    }

    /// Answers a request that came over a connection of this group's claim.
    pub(crate) async fn provision(
        self: Arc<Self>,
        group: String,
        connection: u64,
        from: Peer,
        payload: Bytes,
    ) -> Vec<u8> {
        let _turn = self.asking.acquire().await;
        let from = from.map(|from| from.to_string()).unwrap_or_default();
        let guard = self.clone();
        let answer = move || guard.provisioning.answer(&group, connection, &from, &payload);
        tokio::task::spawn_blocking(answer).await.unwrap_or_default()
    }

    /// Answers a device's request for its next certificate. `named`: the device that the topic names.
    pub(crate) async fn renew(self: Arc<Self>, who: Identity, named: DeviceId, from: Peer, payload: Bytes) -> Vec<u8> {
        let _turn = self.asking.acquire().await;
        let from = from.map(|from| from.to_string()).unwrap_or_default();
        let guard = self.clone();
        let answer = move || match who.certificate() {
            Some((serial, Subject::Device(device))) => {
                let asker = Asker { device, serial, named: &named, recovers: who.recovers(), from: &from };
                guard.renewals.answer(&asker, &payload)
            }
            // Nobody else may publish there.
            _ => Vec::new(),
        };
        tokio::task::spawn_blocking(answer).await.unwrap_or_default()
    }

    /// Whether somebody's certificate waits to be used.
    pub fn awaits(&self, identity: &Identity) -> bool {
        let Some((serial, _)) = identity.certificate() else { return false };
        self.registry.look(|state| state.certificate(serial).is_some_and(is_unproven))
    }

    /// Somebody who is known tried what is not allowed.
    pub(crate) fn refused(&self, who: &Identity, from: Peer, what: &str, reason: &str) {
        let name = who.certificate().map_or_else(|| who.to_string(), |(_, subject)| subject.name().to_owned());
        let act = Act::refused(name, "mqtt", what, reason).role(who.role());
        self.audit.note((self.clock)(), act.from(from.map(|from| from.to_string()).unwrap_or_default()));
    }

    /// Somebody did not get as far as to have a name.
    pub fn turned_away(&self, from: SocketAddr, reason: &str) {
        tracing::debug!(%from, reason, "turned away");
        // Without the port: what one host tries again and again is one thing.
        let act = Act::refused("nobody", "mqtt.handshake", "", reason).from(from.ip().to_string());
        self.audit.note((self.clock)(), act);
    }

    /// Notes that somebody has come in with a certificate: one that was pending counts from now on. Writes a file if so.
    pub fn came_in(&self, identity: &Identity) -> Result<(), RegistryError> {
        let Some((serial, _)) = identity.certificate() else { return Ok(()) };
        self.registry.change((self.clock)(), |state| {
            let still = state.certificate(serial).is_some_and(is_unproven);
            Ok::<_, RegistryError>(if still { vec![Fact::Proven { serial: serial.to_owned() }] } else { vec![] })
        })?;
        self.changed();
        Ok(())
    }
}

fn is_unproven(entry: &Entry) -> bool {
    entry.certificate.pending && entry.proven.is_none()
}

/// Follows the registry until the engine stops; `changed` is called after the guard knows what is new, with whether certificates
/// were revoked or it is time to look at the files. What this process itself takes in while it changes the registry counts, too:
/// a revocation must not pass by because an enrolment has read it first.
pub async fn follow(guard: Arc<Guard>, changed: impl Fn(bool) + Send + Sync + 'static, stop: CancellationToken) {
    let changed = Arc::new(changed);
    // Certificates that end by themselves are asked about again, too.
    const AGAIN: u32 = 300;
    let mut turns: u32 = 0;
    let seen = Arc::new(Mutex::new((0, 0)));
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(FOLLOW) => {}
        }
        turns += 1;
        let (guard, changed, seen) = (guard.clone(), changed.clone(), seen.clone());
        let look = move || -> Result<(), JournalError> {
            guard.registry.read_on()?;
            let facts = guard.registry.look(State::facts);
            let before = std::mem::replace(&mut *seen.lock(), facts);
            let again = turns.is_multiple_of(AGAIN);
            if facts != before || again {
                guard.changed();
                changed(facts.1 != before.1 || again);
            }
            Ok(())
        };
        match tokio::task::spawn_blocking(look).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) if turns % AGAIN == 1 => {
                tracing::error!(%error, "the registry of certificates cannot be read; what was known before still counts");
            }
            Ok(Err(_)) => {}
            Err(error) => tracing::error!(%error, "the registry of certificates was not looked at"),
        }
    }
}
