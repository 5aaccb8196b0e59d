//! The device's certificate: carries out what [`Identity`] says, and tells it what came of it.

use std::time::Duration;

use device::topic::Leaf;
use tokio::time::Instant;

use super::{GOODBYE, RECONNECT_AFTER, Task, act};
use crate::agent;
use crate::client::EdgeConfig;
use crate::error::EdgeError;
use crate::identity::folder::{Folder, Pair};
use crate::identity::{Effect, Event, Identity, IdentityConfig, Means, Trust, Way, paper};
use crate::mqtt::{Hail, Incoming, MqttConfig, MqttError, Outgoing, TlsConfig};

/// How often the wall clock is looked at, to see whether the certificate is due.
const LOOK: Duration = Duration::from_secs(60);
/// Ticks are no closer together than this.
const TICK: Duration = Duration::from_millis(20);

/// The certificate of a client, in memory and on disk.
pub(in crate::client) struct Papers {
    config: IdentityConfig,
    machine: Identity,
    /// Away only while something is written.
    folder: Option<Folder>,
    /// The way of the connection that stands or is being made.
    way: Option<Way>,
    /// The name of the last request.
    request: String,
    ask: String,
    told: String,
    ticked: Instant,
}

impl Papers {
    /// Reads what is kept.
    pub(in crate::client) async fn open(config: &EdgeConfig) -> Result<Option<Self>, EdgeError> {
        let Some(identity) = config.identity.clone() else { return Ok(None) };
        let opened = identity.clone();
        let folder = tokio::task::spawn_blocking(move || Folder::open(&opened)).await;
        let folder = folder.map_err(|_| EdgeError::Stopped)??;
        let means = Means { claim: folder.claim().is_some(), recovery: identity.recovery.is_some() };
        let machine = Identity::new(config.device.clone(), folder.kept()?, means);
        let kept = machine.kept();
        if kept.current.is_none() && !matches!(kept.new, Some(Some(_))) && !means.claim {
            return Err(EdgeError::Identity(format!(
                "{} holds no certificate, and there is no claim to ask for one with",
                identity.folder.display()
            )));
        }
        Ok(Some(Self {
            config: identity,
            machine,
            folder: Some(folder),
            way: None,
            request: String::new(),
            ask: Leaf::CertReq.topic(&config.device),
            told: Leaf::CertRes.topic(&config.device),
            ticked: Instant::now(),
        }))
    }

    /// When the machine is to be told that time has passed.
    pub(super) fn wake(&self, started: Instant) -> Instant {
        let due = self.machine.deadline().map(|at| (started + at).max(self.ticked + TICK));
        due.map_or(self.ticked + LOOK, |due| due.min(self.ticked + LOOK))
    }

    /// How often a new certificate was taken into use.
    pub(super) fn renewed(&self) -> u64 {
        self.machine.counts().promoted
    }

    /// Whether the connection that stands or is being made is one in which records are sent.
    pub(super) fn is_whole(&self) -> bool {
        self.way.is_none_or(Way::is_whole)
    }

    fn pair(&self, way: Way) -> Option<&Pair> {
        let folder = self.folder.as_ref()?;
        match way {
            Way::Claim => folder.claim(),
            Way::Current | Way::Recovery => folder.current(),
            Way::New | Way::RecoveryNew => folder.new_pair(),
        }
    }

    /// Where requests go in this session, and where they are answered.
    fn topics(&self) -> (String, String) {
        match (self.way, self.folder.as_ref().and_then(Folder::group)) {
            (Some(Way::Claim), Some(group)) => {
                (format!("provisioning/{group}/req"), format!("provisioning/{group}/res"))
            }
            _ => (self.ask.clone(), self.told.clone()),
        }
    }
}

/// Whether anybody was there, and whether they said that the certificate has expired.
fn judged(error: &MqttError) -> (bool, bool) {
    let absent = matches!(error, MqttError::Timeout(_) | MqttError::Io { doing: "cannot connect", .. });
    (!absent, error.is_expired())
}

impl Task {
    /// How to connect next with a certificate of the device's own, `whole` being the greeting of a session in which records are
    /// sent. `Err`: it cannot be done now.
    pub(super) fn show(&mut self, whole: Hail) -> Result<(MqttConfig, Hail), String> {
        let (now, wall) = (self.elapsed(), (self.clock)());
        let config = self.config.mqtt.clone();
        let Some(papers) = &mut self.papers else { return Ok((config, whole)) };
        papers.way = papers.machine.way(now, wall);
        let way = papers.way.ok_or("there is no certificate to show")?;
        let pair = papers.pair(way).ok_or("the certificate is being written")?;
        let authority = papers.folder.as_ref().map(Folder::authority).unwrap_or_default();
        let chain = pair.chain.as_deref().unwrap_or_default();
        let tls = TlsConfig::from_pem(authority, papers.config.server_name.clone(), chain, &pair.key)
            .map_err(|error| error.to_string())?;
        let address = match (&papers.config.recovery, way) {
            (Some(recovery), Way::Recovery | Way::RecoveryNew) => recovery.clone(),
            _ => config.address.clone(),
        };
        let (_, told) = papers.topics();
        let hail = match way.is_whole() {
            true => Hail { subscribe: [whole.subscribe, vec![told]].concat(), ..whole },
            false => Hail { will: None, subscribe: vec![told], ..whole },
        };
        Ok((MqttConfig { address, tls: Some(tls), ..config }, hail))
    }

    /// A connection stands. False: not one in which records are sent.
    pub(super) async fn shown(&mut self) -> bool {
        let Some(papers) = &self.papers else { return true };
        let (Some(way), whole) = (papers.way, papers.is_whole()) else { return true };
        self.papers(Event::Connected(way)).await;
        whole
    }

    /// A connection could not be made, or has ended.
    pub(super) async fn turned_away(&mut self, error: &MqttError) {
        let Some(way) = self.papers.as_ref().and_then(|papers| papers.way) else { return };
        let (reached, expired) = judged(error);
        self.papers(Event::Ended { way, reached, expired }).await;
    }

    /// A message that may be about the certificate; else it is given back.
    pub(super) async fn certified(&mut self, message: Incoming) -> Option<Incoming> {
        let Some(papers) = &self.papers else { return Some(message) };
        let Incoming::Message { topic, payload } = &message else { return Some(message) };
        if *topic != papers.topics().1 {
            return Some(message);
        }
        if let Some(event) = paper::unasked(payload) {
            self.papers(event).await;
        } else if let Some(answer) = paper::answer(&papers.request, payload) {
            if let crate::identity::Answer::Refused(reason) = &answer {
                let text = String::from_utf8_lossy(payload);
                tracing::warn!(device = %self.config.device, reason, %text, "no certificate");
            }
            self.papers(Event::Answer(answer)).await;
        }
        None
    }

    /// Tells the machine that time has passed, if it is to be told.
    pub(super) async fn look_at_papers(&mut self) {
        let now = Instant::now();
        let started = self.started;
        if let Some(papers) = self.papers.as_mut().filter(|papers| papers.wake(started) <= now) {
            papers.ticked = now;
            self.papers(Event::Tick).await;
        }
    }

    /// Gives events to the machine and does what it says. What that leads to is done in turn, not by recursion.
    pub(super) async fn papers(&mut self, event: Event) {
        let mut events = std::collections::VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let (now, wall) = (self.elapsed(), (self.clock)());
            let Some(papers) = &mut self.papers else { return };
            let before = papers.machine.counts().promoted;
            let effects = papers.machine.step(event, now, wall);
            papers.way = papers.machine.session().or(papers.way);
            if papers.machine.counts().promoted > before {
                tracing::info!(device = %self.config.device, "a new certificate is in use");
            }
            for effect in effects {
                events.extend(self.follow(effect).await);
            }
        }
    }

    async fn follow(&mut self, effect: Effect) -> Option<Event> {
        match effect {
            Effect::MakeKey => self.write(Folder::make_key).await,
            Effect::Keep { chain, bundle } => self.write(move |folder| folder.keep(chain, bundle)).await,
            Effect::Trust(trust) => self.trust(trust).await,
            Effect::Promote => self.write(Folder::promote).await,
            Effect::Forget => self.write(Folder::forget).await,
            Effect::AskNonce => self.ask(|id, _| Ok(paper::ask_nonce(id))),
            Effect::AskNext => self.ask(paper::ask_next),
            Effect::AskFirst(nonce) => {
                let (device, hardware) = (self.config.device.clone(), self.config.firmware.clone());
                self.ask(|id, key| paper::ask_first(id, &device, &hardware, key, &nonce))
            }
            Effect::Reconnect => {
                let way = self.papers.as_ref().and_then(|papers| papers.way)?;
                if let Some(link) = self.link.take() {
                    let _ = tokio::time::timeout(GOODBYE, link.disconnect()).await;
                }
                self.forget_link();
                (self.reconnect_wait, self.reconnect_at) = (RECONNECT_AFTER, Some(Instant::now()));
                self.step(agent::Event::Disconnected).await;
                Some(Event::Ended { way, reached: true, expired: false })
            }
        }
    }

    /// Keeps whom to trust and says so. What was under way goes on: nothing of it has changed.
    async fn trust(&mut self, trust: Trust) -> Option<Event> {
        let id = trust.id;
        if let Some(Event::Kept(_)) = self.write(move |folder| folder.trust(trust.bundle)).await {
            tracing::info!(device = %self.config.device, "whom to trust was changed");
            let name = format!("{:016x}", rand::random::<u64>());
            self.hand_in(&paper::say_trust(&name, &id));
        }
        None
    }

    /// Writes something, on a thread that may wait for the disk.
    async fn write(
        &mut self,
        work: impl FnOnce(&mut Folder) -> Result<(), EdgeError> + Send + 'static,
    ) -> Option<Event> {
        let papers = self.papers.as_mut()?;
        let mut folder = papers.folder.take()?;
        // What is in memory is what is on disk, whether or not the work was done.
        let done = tokio::task::spawn_blocking(move || {
            let result = work(&mut folder).and_then(|()| folder.kept());
            (folder, result)
        });
        let Ok((folder, result)) = done.await else { return Some(Event::NotKept) };
        papers.folder = Some(folder);
        Some(match result {
            Ok(kept) => Event::Kept(kept),
            Err(error) => {
                tracing::warn!(device = %self.config.device, %error, "the certificate is not renewed now");
                Event::NotKept
            }
        })
    }

    /// Sends a request; without an answer it is sent again.
    fn ask(&mut self, make: impl FnOnce(&str, &str) -> Result<Vec<u8>, paper::BadPaper>) -> Option<Event> {
        let papers = self.papers.as_mut()?;
        papers.request = format!("{:016x}", rand::random::<u64>());
        let key = papers.folder.as_ref().and_then(Folder::new_pair).map_or("", |pair| pair.key.as_str());
        let payload = match make(&papers.request, key) {
            Ok(payload) => payload,
            Err(error) => {
                tracing::warn!(device = %self.config.device, %error, "cannot ask for a certificate");
                return Some(Event::NotKept);
            }
        };
        self.hand_in(&payload);
        None
    }

    /// Sends something about the certificate.
    fn hand_in(&mut self, payload: &[u8]) {
        let (Some(papers), Some(link)) = (&self.papers, self.link.as_mut()) else { return };
        let (topic, _) = papers.topics();
        let message = Outgoing { qos: 1, ..act::telemetry(&topic, payload) };
        if let Err(error) = link.publish(&message) {
            tracing::debug!(device = %self.config.device, %error, "cannot ask for a certificate");
        }
    }
}
