//! Certificates that devices renew by themselves: the device's machine against the engine's rules over the real registry, killed
//! at every step.
//!
//! A world is one device, its disk, and the engine's registry, without sockets, cryptography or a clock. Whatever is lost, repeated
//! or killed, however long the device was away, whatever roots an operator rolls meanwhile: it must come in again with a certificate
//! that counts, and hold one at any time.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use access::enrol::{self, Ask, By};
use access::registry::{Certificate, ClaimRule, Fact, State};
use access::renew::{self, Verdict};
use access::roll::{self, Roll, Stage};
use device::id::DeviceId;
use device::time::{SECOND, Timestamp};
use edge::identity::{Answer, Effect, Event, Held, Identity, Kept, Means, Trust, Way};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const MINUTE: i64 = 60 * SECOND;
const DAY: i64 = 86_400 * SECOND;
const RECOVERY: i64 = 90 * DAY;

/// Roots, each a number.
type Roots = BTreeSet<u32>;

fn text(roots: &Roots) -> String {
    roots.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
}

/// The engine's authority.
struct Authorities {
    /// Which root signs.
    signs: u32,
    /// Which one has signed the certificate that the engine shows.
    shows: u32,
    /// Which are trusted.
    trusted: Roots,
    made: u32,
    /// Which one has signed each certificate.
    signed: BTreeMap<String, u32>,
    rolled: u64,
}

/// A key, and the number of its certificate.
type Paper = (String, Option<String>);

struct World {
    rng: StdRng,
    now: Timestamp,
    registry: State,
    made: u64,
    authorities: Authorities,
    device: DeviceId,
    /// What is durable on the device.
    trusts: Roots,
    current: Option<Paper>,
    new: Option<Paper>,
    /// The running process and when it began.
    process: Option<(Identity, Timestamp)>,
    /// How often anything goes wrong, of a hundred.
    trouble: u32,
    kills: u64,
}

impl World {
    fn new(seed: u64, enrolled: bool) -> Self {
        let mut world = Self {
            rng: StdRng::seed_from_u64(seed),
            now: Timestamp(1_800_000_000 * SECOND),
            registry: State::default(),
            made: 0,
            authorities: Authorities {
                signs: 1,
                shows: 1,
                trusted: Roots::from([1]),
                made: 1,
                signed: BTreeMap::new(),
                rolled: 0,
            },
            trusts: Roots::from([1]),
            device: DeviceId::new("pump-7").unwrap(),
            current: None,
            new: None,
            process: None,
            trouble: 0,
            kills: 0,
        };
        let rule = ClaimRule {
            group: "g".into(),
            allow: vec!["pump-*".into()],
            quota: 1,
            config: None,
            labels: BTreeMap::new(),
        };
        world.registry.apply(world.now, &Fact::Claim(rule));
        if enrolled {
            let serial = world.issue("k0", None, false);
            world.current = Some(("k0".into(), Some(serial)));
        }
        world
    }

    fn issue(&mut self, key: &str, replaces: Option<String>, pending: bool) -> String {
        self.made += 1;
        let serial = format!("s{}", self.made);
        let certificate = Certificate {
            serial: serial.clone(),
            subject: "urn:dev:main:pump-7".into(),
            key: key.to_owned(),
            not_before: self.now.plus(-DAY),
            not_after: self.now.plus(365 * DAY),
            pending,
            replaces,
            issuer: Some(self.authorities.signs.to_string()),
        };
        self.registry.apply(self.now, &Fact::Issued(certificate));
        self.authorities.signed.insert(serial.clone(), self.authorities.signs);
        serial
    }

    /// An operator who rolls the root takes the next step as soon as it may be taken, or calls it off.
    fn operate(&mut self) {
        let (_, missing) = roll::missing(&self.registry, "main", self.now);
        let left = roll::left_behind(&self.registry, "main", self.now);
        let own = &mut self.authorities;
        let stage = match self.registry.roll().stage() {
            None => {
                own.made += 1;
                own.trusted.insert(own.made);
                Stage::Begun
            }
            Some(Stage::Begun) if self.rng.random_range(0..8) == 0 => {
                own.trusted = Roots::from([own.signs]);
                Stage::Finished
            }
            Some(Stage::Begun) if missing.is_empty() => {
                own.signs = own.made;
                Stage::Switched
            }
            Some(Stage::Switched) if missing.is_empty() && left.is_empty() => {
                (own.shows, own.trusted) = (own.signs, Roots::from([own.signs]));
                own.rolled += 1;
                Stage::Finished
            }
            _ => return,
        };
        let over = if stage == Stage::Switched { [0, 7 * MINUTE, DAY][self.rng.random_range(0..3)] } else { 0 };
        let issuer = (stage == Stage::Switched).then(|| self.authorities.signs.to_string());
        let roll = Roll { stage, bundle: text(&self.authorities.trusted), over, issuer };
        self.registry.apply(self.now, &Fact::Roll(roll));
    }

    /// Whether the engine says that this certificate is to be renewed now.
    fn is_due(&self, serial: &str) -> bool {
        let entry = self.registry.certificate(serial).unwrap();
        self.now >= roll::renewal_due(&self.registry, entry, &self.device)
    }

    /// What the engine says unasked. False: the process is not there any more.
    fn remind(&mut self, serial: &str) -> bool {
        let event = match self.registry.roll().untold("pump-7") {
            Some(id) => Event::Trust(Trust { bundle: text(&self.authorities.trusted), id: id.to_owned() }),
            None if self.is_due(serial) => Event::Due,
            None => return true,
        };
        self.goes_wrong() || self.event(event)
    }

    fn held(&self, serial: &str) -> Held {
        let certificate = &self.registry.certificate(serial).unwrap().certificate;
        Held { not_before: certificate.not_before, not_after: certificate.not_after }
    }

    fn kept(&self) -> Kept {
        let held = |paper: &Paper| paper.1.as_ref().map(|serial| self.held(serial));
        Kept { current: self.current.as_ref().and_then(held), new: self.new.as_ref().map(held) }
    }

    fn goes_wrong(&mut self) -> bool {
        self.rng.random_range(0..100) < self.trouble
    }

    /// kill -9, perhaps.
    fn killed(&mut self) -> bool {
        let killed = self.goes_wrong();
        if killed {
            self.process = None;
            self.kills += 1;
        }
        killed
    }

    fn serial(&self, way: Way) -> Option<String> {
        let paper = match way {
            Way::Claim => None,
            Way::Current | Way::Recovery => self.current.as_ref(),
            Way::New | Way::RecoveryNew => self.new.as_ref(),
        };
        paper.and_then(|paper| paper.1.clone())
    }

    /// Whether a certificate opens a connection, by handshake and registry. The error says whether it has expired.
    fn opens(&self, serial: &str, recovery: bool) -> Result<(), bool> {
        let is_known = self.authorities.trusted.contains(&self.authorities.signed[serial]);
        if !is_known || !self.trusts.contains(&self.authorities.shows) {
            return Err(false);
        }
        let late = self.now.since(self.held(serial).not_after);
        if late > if recovery { RECOVERY } else { 0 } {
            return Err(true);
        }
        self.registry.standing(serial, Some("pump-7"), self.now).map_err(|_| false)
    }

    /// One thing happens to the process. False: it is not there any more.
    fn event(&mut self, event: Event) -> bool {
        let Some((identity, started)) = &mut self.process else { return false };
        let mono = Duration::from_nanos(u64::try_from(self.now.since(*started)).unwrap());
        let effects = identity.step(event, mono, self.now);
        effects.into_iter().all(|effect| self.follow(effect))
    }

    fn follow(&mut self, effect: Effect) -> bool {
        if self.killed() {
            return false;
        }
        let way = self.process.as_ref().and_then(|(identity, _)| identity.session());
        match effect {
            Effect::MakeKey => {
                self.made += 1;
                self.new = Some((format!("k{}", self.made), None));
            }
            Effect::Trust(trust) => {
                self.trusts = trust.bundle.split(',').map(|root| root.parse().unwrap()).collect();
                if self.killed() {
                    return false;
                }
                // The engine may not hear of it, or not in time.
                if !self.goes_wrong() && trust.id == text(&self.authorities.trusted) {
                    self.registry.apply(self.now, &Fact::Trusts { device: "pump-7".into(), bundle: trust.id });
                }
                return true;
            }
            Effect::Keep { chain, bundle } => {
                self.trusts = bundle.split(',').map(|root| root.parse().unwrap()).collect();
                let (key, _) = self.new.clone().expect("a key stands before its certificate");
                assert_eq!(self.registry.certificate(&chain).unwrap().certificate.key, key);
                self.new = Some((key, Some(chain)));
            }
            Effect::Promote => {
                self.current = self.new.take();
                assert!(
                    self.current.as_ref().unwrap().1.is_some(),
                    "a key without a certificate took the place of one"
                );
            }
            Effect::Forget => self.new = None,
            Effect::Reconnect => {
                let way = way.expect("there is a connection to end");
                return self.event(Event::Ended { way, reached: true, expired: false });
            }
            Effect::AskNonce => return self.say(Answer::Nonce(b"nonce".to_vec())),
            Effect::AskFirst(_) | Effect::AskNext => {
                // A request that is lost on its way.
                if self.goes_wrong() {
                    return self.cut();
                }
                let answer = if effect == Effect::AskNext { self.renew(way.unwrap()) } else { self.enrol() };
                return self.say(answer);
            }
        }
        if self.killed() {
            return false;
        }
        let kept = self.kept();
        self.event(Event::Kept(kept))
    }

    /// An answer of the engine, which may be lost, or come twice.
    fn say(&mut self, answer: Answer) -> bool {
        if self.goes_wrong() {
            return self.cut();
        }
        let twice = self.goes_wrong();
        self.event(Event::Answer(answer.clone())) && (!twice || self.event(Event::Answer(answer)))
    }

    fn cut(&mut self) -> bool {
        let way = self.process.as_ref().and_then(|(identity, _)| identity.session());
        let Some(way) = way else { return true };
        self.event(Event::Ended { way, reached: true, expired: false })
    }

    fn renew(&mut self, way: Way) -> Answer {
        let serial = self.serial(way).expect("a session has a certificate");
        let key = self.new.clone().expect("the key is kept before anything is asked for it").0;
        match renew::decide(&self.registry, &self.device, &serial, &key, self.now) {
            Ok(Verdict::Again(serial)) => Answer::Given { chain: serial, bundle: text(&self.authorities.trusted) },
            Ok(Verdict::New { replaces }) => {
                let chain = self.issue(&key, Some(replaces), true);
                Answer::Given { chain, bundle: text(&self.authorities.trusted) }
            }
            Err(refusal) => Answer::Refused(refusal.code().to_owned()),
        }
    }

    fn enrol(&mut self) -> Answer {
        let key = self.new.clone().expect("the key is kept before anything is asked for it").0;
        let ask = Ask { device: "pump-7", key: &key, hw: "", by: By::Claim("g") };
        match enrol::decide(&self.registry, &ask, self.now) {
            Ok(enrol::Verdict::Again(known)) => {
                Answer::Given { chain: known.serial, bundle: text(&self.authorities.trusted) }
            }
            Ok(enrol::Verdict::New(mut new)) => {
                new.serial = self.issue(&key, None, true);
                let chain = new.serial.clone();
                self.registry.apply(self.now, &Fact::Enrolled(new));
                Answer::Given { chain, bundle: text(&self.authorities.trusted) }
            }
            Err(refusal) => Answer::Refused(refusal.code().to_owned()),
        }
    }

    /// Starts the process if it is not there, connects it if it is not connected.
    fn turn(&mut self, recovery: bool) {
        let started = self.now;
        if self.process.is_none() {
            let identity = Identity::new(self.device.clone(), self.kept(), Means { claim: true, recovery });
            self.process = Some((identity, started));
        }
        let Some((identity, started)) = &self.process else { return };
        if identity.session().is_some() {
            let serial = identity.session().filter(|way| way.is_whole()).and_then(|way| self.serial(way));
            if self.goes_wrong() {
                self.cut();
            } else if serial.is_none_or(|serial| self.remind(&serial)) {
                self.event(Event::Tick);
            }
            return;
        }
        let mono = Duration::from_nanos(u64::try_from(self.now.since(*started)).unwrap());
        let way = identity.way(mono, self.now).expect("there is always something to show");
        if self.goes_wrong() {
            self.event(Event::Ended { way, reached: false, expired: false });
            return;
        }
        let serial = self.serial(way);
        if let Some(serial) = &serial {
            if let Err(expired) = self.opens(serial, !way.is_whole()) {
                self.event(Event::Ended { way, reached: true, expired });
                return;
            }
            let entry = self.registry.certificate(serial).unwrap();
            if entry.certificate.pending && entry.proven.is_none() {
                self.registry.apply(self.now, &Fact::Proven { serial: serial.clone() });
            }
        } else {
            assert_eq!(way, Way::Claim, "{way:?} without a certificate");
            assert!(self.trusts.contains(&self.authorities.shows), "it does not trust the engine any more");
        }
        // It may be killed, or cut off, between the engine's note and the answer to its hello.
        if self.killed() || !self.event(Event::Connected(way)) {
            return;
        }
        let still = self.process.as_ref().is_some_and(|(identity, _)| identity.session() == Some(way));
        if way.is_whole() && still {
            if self.goes_wrong() {
                self.cut();
                return;
            }
            let serial = serial.unwrap();
            if self.remind(&serial) {
                self.event(Event::Greeted { renew: self.is_due(&serial) });
            }
        }
    }

    /// What it holds and trusts, and what the engine does.
    fn story(&self) -> String {
        let Authorities { signs, shows, trusted, signed, .. } = &self.authorities;
        format!(
            "it holds {:?} and {:?}, trusts {:?}; {signs} signs, {shows} is shown, {trusted:?} are trusted; signed by {signed:?}; {:?}",
            self.current,
            self.new,
            self.trusts,
            self.registry.roll().last()
        )
    }

    /// It holds a certificate that opens something: at the main listener, or where those that have expired are renewed.
    fn holds_one(&self) -> bool {
        [&self.current, &self.new]
            .into_iter()
            .flatten()
            .any(|paper| paper.1.as_ref().is_some_and(|serial| self.opens(serial, true).is_ok()))
    }

    /// Nothing goes wrong any more: it comes in, with nothing half done left, and its certificate is not due.
    fn comes_in(&mut self, recovery: bool, what: &str) {
        self.trouble = 0;
        for _ in 0..400 {
            self.turn(recovery);
            self.now = self.now.plus(5 * SECOND);
            let Some((identity, _)) = &self.process else { continue };
            let serial = self.current.as_ref().and_then(|paper| paper.1.clone());
            if let (Some(Way::Current), Some(serial), None) = (identity.session(), serial, &self.new)
                && self.opens(&serial, false).is_ok()
                && !self.is_due(&serial)
                && self.registry.roll().untold("pump-7").is_none()
            {
                return;
            }
        }
        panic!("{what}: locked out: {:?} {:?} {:?}", self.current, self.new, self.process);
    }
}

/// Chaos, then calm, then a time away; again and again.
fn live(seed: u64, enrolled: bool) -> [u64; 3] {
    let mut world = World::new(seed, enrolled);
    let mut rotations = 0;
    for round in 0..12 {
        let what = format!("seed {seed}, round {round}");
        world.trouble = [3, 10, 25, 45][world.rng.random_range(0..4)];
        let had_one = world.holds_one();
        for _ in 0..world.rng.random_range(5..40) {
            if world.rng.random_range(0..4) == 0 {
                world.event(Event::Rotate);
            }
            if world.rng.random_range(0..10) == 0 && world.holds_one() {
                world.operate();
            }
            world.turn(true);
            assert!(world.holds_one() || !had_one, "{what}: it holds nothing that works: {}", world.story());
            let pause = [0, SECOND, 7 * SECOND, MINUTE, 70 * MINUTE][world.rng.random_range(0..5)];
            world.now = world.now.plus(pause);
        }
        world.comes_in(true, &what);
        rotations += world.process.as_ref().map_or(0, |(identity, _)| identity.counts().promoted);
        // Half of the times it was switched off, and half of those in the middle of something.
        if world.rng.random_range(0..2) == 0 {
            world.trouble = 20;
            for _ in 0..world.rng.random_range(0..6) {
                world.event(Event::Rotate);
                world.turn(true);
            }
            world.process = None;
        }
        world.now = world.now.plus([0, MINUTE, 26 * 60 * MINUTE, 340 * DAY, 420 * DAY][world.rng.random_range(0..5)]);
        for _ in 0..world.rng.random_range(0..3) {
            if world.holds_one() {
                world.operate();
            }
        }
        assert!(world.holds_one() || !enrolled && round == 0, "{what}: away for too long");
    }
    [rotations, world.kills, world.authorities.rolled]
}

#[test]
fn whatever_is_killed_or_lost_a_device_is_never_locked_out() {
    let mut sums = [0; 3];
    for seed in 0..400 {
        sums.iter_mut().zip(live(seed, true)).for_each(|(sum, one)| *sum += one);
    }
    let [rotations, kills, rolls] = sums;
    let tried = rotations > 1_000 && kills > 10_000 && rolls > 200;
    assert!(tried, "{rotations} rotations, {kills} kills, {rolls} roots rolled: nothing was tried");
}

#[test]
fn a_first_certificate_comes_through_whatever_is_killed_or_lost() {
    for seed in 1_000..1_200 {
        live(seed, false);
    }
}

#[test]
fn a_device_that_is_revoked_stays_out_and_one_that_may_enrol_again_comes_in() {
    let mut world = World::new(7, true);
    world.comes_in(false, "at first");
    let serial = world.current.clone().unwrap().1.unwrap();
    world.registry.apply(world.now, &Fact::Revoked { serial, reason: "lost".into() });
    world.cut();
    for _ in 0..200 {
        world.turn(false);
        world.now = world.now.plus(5 * SECOND);
        assert!(world.process.as_ref().unwrap().0.session() != Some(Way::Current), "let in although it is revoked");
        if matches!(world.new, Some((_, Some(_)))) {
            // It was not enrolled before, so the claim lets it in: what an operator would have to allow otherwise.
            world.comes_in(false, "enrolled again");
            return;
        }
    }
    panic!("it never tried its claim: {:?}", world.process);
}
