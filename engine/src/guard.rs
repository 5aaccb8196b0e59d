//! Who gets in at the device listener: certificates against the registry, from the handshake to the last frame.
//!
//! The TLS verifier looks at chain, dates and the list of revocations; here it is decided what a certificate that passed it
//! stands for, and whether it still counts. Every connection asks again when the registry has changed, before it handles
//! another packet.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use access::audit::{Act, Audit};
use access::enrol;
use access::journal::JournalError;
use access::leaf::Leaf;
use access::origin::Factory;
use access::registry::{Entry, Fact, Refusal, Registry, RegistryError, State};
use access::roll;
use access::subject::Subject;
use access::users::{self, Principal, Users};
use bytes::Bytes;
use device::id::DeviceId;
use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::ca;
use crate::clock::Clock;
use crate::gateway::{Asker, Fault, Identity, Password, Peer, code};
use crate::login::{Login, NoLogin};
use crate::provision::{Answered, Provisioning, Way};
use crate::renewal::{self, Renewals};
use crate::welcome::Welcome;

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
    /// The token is none that counts.
    #[error(transparent)]
    Token(users::Refusal),
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
            Self::Token(refusal) => refusal.code(),
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
            Self::Token(users::Refusal::Revoked) => "this token was revoked",
            Self::Token(users::Refusal::Expired) => "this token has expired",
            Self::Token(_) => "this token is not known here",
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
    /// Verifies tokens of clients without a certificate; none: there are no such clients.
    login: Option<Arc<Login>>,
    /// Set when there are devices to be told something.
    welcome: OnceLock<Welcome>,
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
        login: Option<Arc<Login>>,
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
            login,
            welcome: OnceLock::new(),
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
        // A factory whose authority the verifier accepts could give the same name and number.
        if subject != Subject::Server && !self.registry.look(|state| state.issued(&leaf)) {
            return Err(Refusal::Unknown.into());
        }
        self.standing(&leaf.serial, subject)
    }

    /// The same with what the client has shown beside it: a certificate that is none of ours may be that of a factory.
    pub fn identify_chain(&self, chain: &[CertificateDer<'_>]) -> Result<Identity, NoEntry> {
        let first = chain.first().ok_or(NoEntry::Nobody)?;
        match self.identify(first) {
            Err(NoEntry::Nobody) => self.made(chain),
            other => other,
        }
    }

    /// The device that has this certificate of a factory. If several rules are for it, that which lets it in counts.
    fn made(&self, chain: &[CertificateDer<'_>]) -> Result<Identity, NoEntry> {
        let leaf = chain.first().and_then(|first| Leaf::read(first).ok()).ok_or(NoEntry::Nobody)?;
        let factories = self.registry.look(|state| state.factories().values().cloned().collect::<Vec<_>>());
        let now = (self.clock)();
        let mut found: Vec<(Factory, String)> = factories
            .into_iter()
            .filter(|factory| ca::is_from(&factory.ca, chain, now))
            .filter_map(|factory| factory.device(&leaf).map(|device| (factory, device)))
            .collect();
        let lets = self.registry.look(|state| found.iter().position(|(rule, device)| enrol::lets(state, rule, device)));
        if found.is_empty() {
            return Err(NoEntry::Nobody);
        }
        let (factory, device) = found.swap_remove(lets.unwrap_or(0));
        self.still_made(factory, device)
    }

    fn still_made(&self, factory: Factory, device: String) -> Result<Identity, NoEntry> {
        self.registry.look(|state| {
            if let Some(reason) = state.barred(&device) {
                return Err(Refusal::Barred(reason.to_owned()).into());
            }
            let known = state.factories().get(&factory.name);
            if !known.is_some_and(|known| known.ca == factory.ca && known.id_from == factory.id_from) {
                return Err(NoEntry::Nobody);
            }
            Ok(Identity::factory(factory, device))
        })
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
        if let Some((factory, device)) = identity.made() {
            return self.still_made(factory.clone(), device.to_owned());
        }
        if let Some(token) = identity.token() {
            let known = self.users.look(|users| users.principal(token, (self.clock)()));
            let Principal { name, role } = known.map_err(NoEntry::Token)?;
            return Ok(Identity::token_user(name, token.to_owned(), role));
        }
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
                let due = entry.map(|entry| roll::renewal_due(state, entry, &id));
                let is_to_trust = state.roll().untold(id.as_str()).is_some();
                Ok(Identity::device(id, serial.to_owned(), children).due(due).to_trust(is_to_trust))
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

    /// Answers a request for a first certificate; `asker`: over which connection it came, none if it came over HTTP. None: the
    /// engine is ending.
    pub(crate) async fn provision(
        self: Arc<Self>,
        asker: Option<(Asker, u64)>,
        from: Peer,
        payload: Bytes,
    ) -> Option<Answered> {
        let _turn = self.asking.acquire().await;
        let from = from.map(|from| from.to_string()).unwrap_or_default();
        let guard = self.clone();
        let answer = move || {
            let way = asker.as_ref().map_or(Way::Http, |(asker, number)| Way::Connection(asker, *number));
            guard.provisioning.answer(way, &from, &payload)
        };
        tokio::task::spawn_blocking(answer).await.ok()
    }

    /// Answers a device's request for its next certificate, or about whom it trusts. `named`: the device that the topic names.
    /// None: the engine is ending.
    pub(crate) async fn renew(
        self: Arc<Self>,
        who: Identity,
        named: DeviceId,
        from: Peer,
        payload: Bytes,
    ) -> Option<Vec<u8>> {
        let _turn = self.asking.acquire().await;
        let from = from.map(|from| from.to_string()).unwrap_or_default();
        let guard = self.clone();
        let answer = move || match who.certificate() {
            Some((serial, Subject::Device(device))) => {
                let asker = renewal::Asker { device, serial, named: &named, recovers: who.recovers(), from: &from };
                Some(guard.renewals.answer(&asker, &payload))
            }
            // Nobody else may publish there.
            _ => None,
        };
        tokio::task::spawn_blocking(answer).await.ok()?
    }

    /// What a device is told that is to trust others from now on, on `devices/{id}/cert/res`; none: not now.
    pub(crate) async fn whom_to_trust(self: Arc<Self>) -> Option<Vec<u8>> {
        let _turn = self.asking.acquire().await;
        let guard = self.clone();
        tokio::task::spawn_blocking(move || guard.renewals.whom_to_trust()).await.ok()?
    }

    /// Whether somebody's certificate waits to be used.
    pub fn awaits(&self, identity: &Identity) -> bool {
        let Some((serial, _)) = identity.certificate() else { return false };
        self.registry.look(|state| state.certificate(serial).is_some_and(is_unproven))
    }

    /// Somebody who is known tried what is not allowed.
    pub(crate) fn refused(&self, who: &Identity, from: Peer, what: &str, reason: &str) {
        let name = who.name().map_or_else(|| who.to_string(), str::to_owned);
        let act = Act::refused(name, "mqtt", what, reason).role(who.role());
        self.audit.note((self.clock)(), act.from(from.map(|from| from.to_string()).unwrap_or_default()));
    }

    /// Whether whoever has no certificate has to show a token.
    pub(crate) fn takes_tokens(&self) -> bool {
        self.login.is_some()
    }

    /// Who it is that showed this user name and password, which has to be a token of that user.
    pub(crate) async fn log_in(&self, shown: Option<&(String, Password)>, from: Peer) -> Result<Identity, Fault> {
        const NO: Fault = Fault::new(code::BAD_LOGIN, "connect with a certificate, or with a user's name and token");
        let Some(login) = &self.login else { return Err(NO) };
        let address = from.map_or(IpAddr::from([0, 0, 0, 0]), |from| from.ip());
        let token = shown.and_then(|(_, password)| std::str::from_utf8(&password.0).ok());
        let id = token.and_then(users::parts).map(|(id, _)| id.to_owned());
        let refused = |reason: &str| {
            // By its id, never by its text; and a user name may be a token in the wrong place.
            let who = id.as_ref().map_or_else(|| "anonymous".to_owned(), |id| format!("token {id}"));
            let act = Act::refused(who, "mqtt.login", "", reason).from(address.to_string());
            self.audit.note((self.clock)(), act);
        };
        let (Some((user, _)), Some(token)) = (shown, token) else {
            refused("no_token");
            return Err(NO);
        };
        let wrong = match (login.principal(token, address).await, &id) {
            (Ok(Principal { name, role }), Some(id)) if name == *user => {
                return Ok(Identity::token_user(name, id.clone(), role));
            }
            (Ok(_), _) => {
                login.failed(address);
                "other_user"
            }
            (Err(NoLogin::Refused(refusal)), _) => refusal.code(),
            (Err(NoLogin::TooOften(_)), _) => {
                refused("too_many_failures");
                let text = "too many tokens of this address were not accepted; wait a minute";
                return Err(Fault::new(code::CONNECTION_RATE, text));
            }
            (Err(NoLogin::Busy), _) => return Err(Fault::new(code::BUSY, "too many tokens are being verified now")),
        };
        refused(wrong);
        // Which of the two was wrong is not told.
        Err(Fault::new(code::BAD_LOGIN, "user name and token are not accepted"))
    }

    /// Somebody did not get as far as to have a name.
    pub fn turned_away(&self, from: SocketAddr, reason: &str) {
        tracing::debug!(%from, reason, "turned away");
        // Without the port: what one host tries again and again is one thing.
        let act = Act::refused("nobody", "mqtt.handshake", "", reason).from(from.ip().to_string());
        self.audit.note((self.clock)(), act);
    }

    /// Devices that come in for the first time are received by this.
    pub(crate) fn receive_by(&self, welcome: Welcome) {
        let _ = self.welcome.set(welcome);
    }

    /// Somebody has come in with a certificate: one that was pending counts from now on, and a device that was enrolled is
    /// received. Writes files if so.
    pub async fn came_in(self: Arc<Self>, identity: &Identity) -> Result<(), RegistryError> {
        let Some((serial, subject)) = identity.certificate() else { return Ok(()) };
        let arrived = self.registry.look(|state| {
            let enrolled = state.enrolled(subject.name()).filter(|enrolled| enrolled.serial == serial)?;
            Some((enrolled.clone(), state.config(&enrolled.group).cloned()))
        });
        if let (Some((enrolled, config)), Some(welcome)) = (arrived, self.welcome.get()) {
            welcome.receive(&enrolled, config).await.map_err(RegistryError::Refused)?;
        }
        let (guard, serial) = (self.clone(), serial.to_owned());
        let prove = move || {
            guard.registry.change((guard.clock)(), |state| {
                let still = state.certificate(&serial).is_some_and(is_unproven);
                Ok::<_, RegistryError>(if still { vec![Fact::Proven { serial }] } else { vec![] })
            })
        };
        let proven = tokio::task::spawn_blocking(prove).await;
        proven.map_err(|error| RegistryError::Refused(error.to_string()))??;
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
    let seen = Arc::new(Mutex::new(((0, 0), 0)));
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(FOLLOW) => {}
        }
        turns += 1;
        let (guard, changed, seen) = (guard.clone(), changed.clone(), seen.clone());
        let look = move || -> Result<(), JournalError> {
            guard.registry.read_on()?;
            // The users are read on by another; here it is only noticed.
            let facts = (guard.registry.look(State::facts), guard.users.look(users::State::facts));
            let before = std::mem::replace(&mut *seen.lock(), facts);
            let again = turns.is_multiple_of(AGAIN);
            if facts != before || again {
                guard.changed();
                changed(facts.0.1 != before.0.1 || again);
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
