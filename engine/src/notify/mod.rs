//! Messages about incidents on their way to receivers. What is to be sent, and when, the crate `alerts` decides; here are
//! the loop that asks it, and the ways to receivers (`channel`).
//!
//! An attempt costs nobody but its channel: each has its own few attempts at a time, and what waits is on the disk.

mod channel;
mod mail;
mod report;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use alerts::{Courier, Effect, Happening, Keeper, Next, Patience};
use device::alert::Transition;
use device::id::{DeviceId, ShardId};
use device::seq::Position;
use device::time::Timestamp;
use pipelines::alerts::Listener;
use storage::log::LogError;
use tokio::sync::Notify;
use tokio::task::{Id, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::config::AlertsConfig;
use crate::fleets::Fleets;
use crate::gateway::Hub;
pub use channel::ChannelError;
use channel::{Channel, Outcome};
pub use report::{ChannelReport, Report};

/// How long attempts that are under way get when the engine stops.
const GRACE: Duration = Duration::from_secs(5);

/// How long until the log is tried again when it refuses.
const AGAIN: Duration = Duration::from_secs(1);

/// Longest sleep: the clock of the machine may be set.
const LONGEST: Duration = Duration::from_secs(30);

/// Hands on what the logs of shards say of alerts.
pub struct Ear {
    /// Who keeps it.
    pub keeper: Arc<Keeper>,
    /// The groups of devices.
    pub fleets: Arc<Fleets>,
    /// Time.
    pub clock: Clock,
}

impl Listener for Ear {
    fn hear(&self, shard: ShardId, position: Position, transitions: &[(&DeviceId, &[Transition])]) {
        // Channels count for what happens once they are there.
        if self.keeper.with(|desk| desk.settings().channels.is_empty()) {
            return;
        }
        let all = transitions.iter().flat_map(|(device, all)| all.iter().map(|one| (device.as_str(), one)));
        let mut changes: Vec<_> = all.filter_map(|(device, one)| alerts::Change::of(device, one)).collect();
        for change in changes.iter_mut().filter(|change| change.begins()) {
            change.fleets = self.fleets.of(&change.device);
        }
        let is_new = |desk: &alerts::Desk| position.0 > desk.heard(shard.0);
        if !changes.is_empty() && self.keeper.with(is_new) {
            self.keeper.happen((self.clock)(), Happening::Heard { shard: shard.0, position: position.0, changes });
        }
    }

    fn keep(&self) -> Result<(), LogError> {
        self.keeper.write()
    }
}

/// The ways to receivers.
pub struct Channels(Vec<Arc<Channel>>);

impl Channels {
    /// Those of the configuration.
    pub fn new(config: &AlertsConfig, hub: &Arc<Hub>) -> Result<Self, ChannelError> {
        let all = config.channels.iter().map(|channel| Channel::new(channel, hub).map(Arc::new));
        Ok(Self(all.collect::<Result<_, _>>()?))
    }
}

/// One channel, and what is on its way there.
struct Line {
    channel: Arc<Channel>,
    courier: Courier,
    /// The courier has the messages up to this number.
    taken: u64,
}

/// Sends messages until the engine stops.
pub async fn run(keeper: Arc<Keeper>, channels: Channels, report: Arc<Report>, clock: Clock, stop: CancellationToken) {
    let wake = Arc::new(Notify::new());
    {
        let wake = wake.clone();
        keeper.on_change(Arc::new(move || wake.notify_one()));
    }
    let lines = channels.0.into_iter().map(|channel| {
        let courier = Courier::new(Patience::default());
        (channel.name().to_owned(), Line { channel, courier, taken: 0 })
    });
    let mut office =
        Office { keeper, report, clock, lines: lines.collect(), attempts: JoinSet::new(), whose: BTreeMap::new() };
    loop {
        let due = office.round().await;
        tokio::select! {
            () = stop.cancelled() => break,
            () = wake.notified() => {}
            Some(done) = office.attempts.join_next_with_id() => office.done(done),
            () = tokio::time::sleep(due.min(LONGEST)) => {}
        }
    }
    let finish = async {
        while let Some(done) = office.attempts.join_next_with_id().await {
            office.done(done);
        }
    };
    if tokio::time::timeout(GRACE, finish).await.is_err() {
        tracing::info!("a receiver of alerts had no time to answer; the next start sends its message again");
    }
    if let Err(error) = office.write().await {
        tracing::warn!(%error, "alerts: what was sent last may be sent again");
    }
}

struct Office {
    keeper: Arc<Keeper>,
    report: Arc<Report>,
    clock: Clock,
    lines: BTreeMap<String, Line>,
    attempts: JoinSet<Outcome>,
    whose: BTreeMap<Id, (String, u64)>,
}

impl Office {
    async fn write(&self) -> Result<(), String> {
        let (keeper, now) = (self.keeper.clone(), (self.clock)());
        let written = tokio::task::spawn_blocking(move || {
            keeper.tick(now);
            keeper.write()
        });
        written.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
    }

    /// Writes what has happened, then sends what may be sent. Gives the time until there is something to do.
    async fn round(&mut self) -> Duration {
        let written = self.write().await;
        self.report.writable(written.as_ref().err());
        for effect in self.keeper.effects() {
            self.say(effect);
        }
        let now = (self.clock)();
        let mut due = self.keeper.due();
        for (name, line) in &mut self.lines {
            for message in self.keeper.outbox(name, line.taken) {
                line.taken = message.number;
                line.courier.take(message.number, &message.incident);
            }
            loop {
                match line.courier.next(now) {
                    Next::Nothing => break,
                    Next::At(at) => {
                        due = Some(due.map_or(at, |due| due.min(at)));
                        break;
                    }
                    Next::Try(number) => match self.keeper.message(name, number) {
                        None => line.courier.drop(number),
                        Some(message) => {
                            line.courier.begin(number);
                            let channel = line.channel.clone();
                            let task = self.attempts.spawn(async move { channel.send(&message).await });
                            self.whose.insert(task.id(), (name.clone(), number));
                        }
                    },
                }
            }
        }
        let until = due.map_or(LONGEST, |due| Duration::from_nanos(due.since(now).max(0).unsigned_abs()));
        if written.is_err() { until.max(AGAIN) } else { until }
    }

    fn done(&mut self, done: Result<(Id, Outcome), tokio::task::JoinError>) {
        let (id, outcome) = match done {
            Ok(done) => done,
            Err(error) => (error.id(), Outcome::Failed { why: error.to_string(), wish: None }),
        };
        let Some((name, number)) = self.whose.remove(&id) else { return };
        let Some(line) = self.lines.get_mut(&name) else { return };
        let now = (self.clock)();
        match outcome {
            Outcome::Accepted => {
                line.courier.accepted(number);
                self.report.accepted(&name, now);
                self.keeper.happen(now, Happening::Accepted { channel: name, number });
            }
            Outcome::Failed { why, wish } => {
                let wish = wish.map(|wish| i64::try_from(wish.as_nanos()).unwrap_or(i64::MAX));
                line.courier.failed(number, now, rand::random(), wish);
                if line.courier.failures() == 1 {
                    tracing::warn!(channel = name, why, "a message about an alert was not accepted; it is tried again");
                }
                self.report.failed(&name, line.courier.failures(), why);
            }
        }
    }

    fn say(&mut self, effect: Effect) {
        match effect {
            Effect::Unreached { to, rule, device, incident } => {
                self.report.unreached();
                tracing::error!(
                    to,
                    rule,
                    device,
                    incident,
                    "alert: nobody was told, since this name has no channel; add it to [alerts.people]"
                );
            }
            Effect::GaveUp { message, why } => {
                if let Some(line) = self.lines.get_mut(&message.channel) {
                    line.courier.drop(message.number);
                }
                self.report.gave_up(&message.channel);
                tracing::error!(
                    channel = message.channel,
                    key = message.key(),
                    why,
                    "a message about an alert is given up"
                );
            }
            Effect::SilenceEnded(id, silence) => {
                tracing::info!(%id, author = silence.author, reason = silence.reason, "a silence is over");
            }
        }
    }
}

/// Names that rules tell and that reach nobody, each with its rules.
pub fn unreached(project: &sql::Project, settings: &alerts::Settings) -> BTreeMap<String, Vec<String>> {
    let mut all: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for plan in &project.alerts {
        for step in plan.rule.ladder.iter().filter(|step| !settings.reaches(&step.to)) {
            let rules = all.entry(step.to.to_string()).or_default();
            if rules.last().is_none_or(|last| *last != *plan.rule.name) {
                rules.push(plan.rule.name.to_string());
            }
        }
    }
    all
}

/// Says in the log who of a project's ladders is reached by nobody.
pub fn warn_unreached(project: &sql::Project, settings: &alerts::Settings) {
    for (to, rules) in unreached(project, settings) {
        let rules = rules.join(", ");
        tracing::warn!(
            to,
            rules,
            "alerts tell somebody who has no channel, so nobody hears of them; add [alerts.people] and [[alerts.channels]]"
        );
    }
}

/// Another version of the project counts: its rules may be grouped otherwise.
pub fn adopt(keeper: &Keeper, project: &sql::Project) {
    let (settings, now) = keeper.with(|desk| (desk.settings().clone(), desk.now()));
    warn_unreached(project, &settings);
    let groups = project.groups();
    if settings.groups != groups {
        keeper.happen(now, Happening::Settings(alerts::Settings { groups, ..settings }));
    }
}

/// The time, for reports.
fn text(time: Option<Timestamp>) -> Option<String> {
    time.map(alerts::shown)
}
