//! Commands to a device: each has an id, a deadline in the engine's time, and one end.
//!
//! A pure state machine, as the shadows are: [`Commands::queue`], [`Commands::result`] and [`Commands::expire`] decide,
//! the log carries [`Step`]s, [`Commands::apply`] makes them true. A command waits while its device is away and is
//! given to it whenever it comes back, until it has an end; the device knows by the id that it has done it already.

use std::collections::VecDeque;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::shadow::read_object;
use crate::time::{SECOND, Timestamp};
use crate::varint::{self, Broken, Cursor};

/// Commands that may wait for their end at the same time.
pub const MAX_WAITING: usize = 256;
/// Commands with an end that are remembered.
const REMEMBERED: usize = 256;
/// Largest arguments and largest result, as JSON text, in bytes.
pub const MAX_ARGS: usize = 32 << 10;
/// Longest id, name and name of whoever asks, in bytes.
const MAX_NAME: usize = 128;
/// The latest deadline: 90 days ahead.
pub const MAX_AHEAD: i64 = 90 * 86_400 * SECOND;

const QUEUED: u8 = 1;
const ENDED: u8 = 2;

/// Where a command stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// The device has not said anything about it.
    Queued = 0,
    /// The device has it.
    Accepted = 1,
    /// The device is at it.
    Running = 2,
    /// Done.
    Ok = 3,
    /// The device tried and could not.
    Failed = 4,
    /// Its deadline passed before the device had it, or the device says so.
    Expired = 5,
    /// The device will not do it.
    Rejected = 6,
}

impl State {
    /// Every state.
    pub const ALL: [Self; 7] =
        [Self::Queued, Self::Accepted, Self::Running, Self::Ok, Self::Failed, Self::Expired, Self::Rejected];

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Accepted => "accepted",
            Self::Running => "running",
            Self::Ok => "ok",
            Self::Failed => "failed",
            Self::Expired => "expired",
            Self::Rejected => "rejected",
        }
    }

    /// Whether nothing comes after it.
    pub fn is_end(self) -> bool {
        !matches!(self, Self::Queued | Self::Accepted | Self::Running)
    }

    fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == name)
    }

    fn get(cursor: &mut Cursor<'_>) -> Result<Self, Broken> {
        match Self::ALL.get(usize::from(cursor.byte("a state")?)) {
            Some(state) => Ok(*state),
            None => cursor.broken("a state"),
        }
    }
}

/// What a device is told to do.
#[derive(Debug, Clone, PartialEq)]
pub struct Order {
    /// Its id, chosen by whoever asks or drawn by the engine.
    pub id: Arc<str>,
    /// What to do.
    pub name: Arc<str>,
    /// With what.
    pub args: Value,
    /// The device must not begin after this time.
    pub deadline: Timestamp,
    /// Who asks.
    pub by: Arc<str>,
}

/// A command and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Command {
    /// What the device is told.
    pub order: Order,
    /// When it was asked for.
    pub queued: Timestamp,
    /// Where it stands.
    pub state: State,
    /// What the device said last.
    pub out: Value,
    /// When it last changed.
    pub changed: Timestamp,
}

/// One change of one command, as the log holds it.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// It was asked for.
    Queued(Box<Order>),
    /// It stands elsewhere now.
    Moved {
        /// Its id.
        id: Arc<str>,
        /// Where.
        state: State,
        /// What the device said.
        out: Value,
    },
}

impl Step {
    /// The id of the command.
    pub fn id(&self) -> &Arc<str> {
        match self {
            Self::Queued(order) => &order.id,
            Self::Moved { id, .. } => id,
        }
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::Queued(order) => {
                out.push(QUEUED);
                order.put(out);
            }
            Self::Moved { id, state, out: said } => {
                out.push(ENDED);
                varint::put_bytes(out, id.as_bytes());
                out.push(*state as u8);
                varint::put_bytes(out, said.to_string().as_bytes());
            }
        }
    }

    pub(crate) fn get(cursor: &mut Cursor<'_>) -> Result<Self, Broken> {
        match cursor.byte("a kind of step")? {
            QUEUED => Ok(Self::Queued(Box::new(Order::get(cursor)?))),
            ENDED => Ok(Self::Moved {
                id: Arc::from(cursor.text("an id")?),
                state: State::get(cursor)?,
                out: json_value(cursor)?,
            }),
            _ => cursor.broken("a kind of step"),
        }
    }
}

fn json_value(cursor: &mut Cursor<'_>) -> Result<Value, Broken> {
    let text = cursor.text("a JSON value")?;
    serde_json::from_str(text).or_else(|_| cursor.broken("a JSON value"))
}

impl Order {
    /// What the device gets, as JSON: `{"cmd_id", "name", "args", "deadline"}`, the deadline in nanoseconds since the
    /// Unix epoch.
    pub fn message(&self) -> Vec<u8> {
        let message =
            json!({ "cmd_id": &*self.id, "name": &*self.name, "args": self.args, "deadline": self.deadline.0 });
        message.to_string().into_bytes()
    }

    fn put(&self, out: &mut Vec<u8>) {
        for text in [&self.id, &self.name, &self.by] {
            varint::put_bytes(out, text.as_bytes());
        }
        varint::put_bytes(out, self.args.to_string().as_bytes());
        varint::put_signed(out, self.deadline.0);
    }

    fn get(cursor: &mut Cursor<'_>) -> Result<Self, Broken> {
        let mut text = || cursor.text("a name").map(Arc::from);
        let (id, name, by) = (text()?, text()?, text()?);
        Ok(Self { id, name, by, args: json_value(cursor)?, deadline: Timestamp(cursor.signed("a time")?) })
    }
}

/// What the engine answers to who asks for a command.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// It is queued.
    Queued,
    /// It was asked for before.
    Known,
    /// There is another command of that id.
    Conflict,
    /// It cannot be done.
    Refused(String),
}

/// What became of a result that a device sent.
#[derive(Debug, Clone, PartialEq)]
pub enum Heard {
    /// It is news.
    News(Step),
    /// It says what is known already.
    Old,
    /// It cannot be read, or there is no such command.
    Refused(String),
}

/// All commands of a device, oldest first.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Commands {
    all: VecDeque<Command>,
}

impl Commands {
    /// Decides about a command that somebody asks for.
    pub fn queue(&self, order: Order, now: Timestamp) -> (Answer, Option<Step>) {
        if let Some(known) = self.find(&order.id) {
            // Asked again, the deadline is counted from another time.
            let same = known.order.name == order.name && known.order.args == order.args;
            return (if same { Answer::Known } else { Answer::Conflict }, None);
        }
        let refused = |text: String| (Answer::Refused(text), None);
        for (what, text) in [("the id", &order.id), ("the name", &order.name), ("who asks", &order.by)] {
            if text.is_empty() || text.len() > MAX_NAME || text.chars().any(char::is_control) {
                return refused(format!("{what} of a command has 1 to {MAX_NAME} bytes and no control characters"));
            }
        }
        let size = order.args.to_string().len();
        if size > MAX_ARGS {
            return refused(format!("the arguments have {size} bytes as JSON, {MAX_ARGS} at most"));
        }
        if order.deadline <= now {
            return refused("the deadline has passed".to_owned());
        }
        if order.deadline.since(now) > MAX_AHEAD {
            return refused("the deadline is more than 90 days ahead".to_owned());
        }
        let waiting = self.all.iter().filter(|command| !command.state.is_end()).count();
        if waiting >= MAX_WAITING {
            return refused(format!("{waiting} commands wait for this device already, {MAX_WAITING} at most"));
        }
        (Answer::Queued, Some(Step::Queued(Box::new(order))))
    }

    /// Decides about a result, `{"cmd_id", "state", "out"?}` in JSON or CBOR.
    pub fn result(&self, payload: &[u8]) -> Heard {
        let mut object = match read_object(payload) {
            Ok(object) => object,
            Err(text) => return Heard::Refused(text),
        };
        let text = |value: Option<Value>| value.as_ref().and_then(Value::as_str).map(str::to_owned);
        let Some(id) = text(object.remove("cmd_id")) else {
            return Heard::Refused("`cmd_id` is missing: the id of the command".to_owned());
        };
        let state = text(object.remove("state"));
        let Some(state) = state.as_deref().and_then(State::from_name).filter(|state| *state != State::Queued) else {
            let text = "`state` must be accepted, running, ok, failed, expired or rejected".to_owned();
            return Heard::Refused(text);
        };
        let out = object.remove("out").unwrap_or(Value::Null);
        let size = out.to_string().len();
        if size > MAX_ARGS {
            return Heard::Refused(format!("`out` has {size} bytes as JSON, {MAX_ARGS} at most"));
        }
        let Some(known) = self.find(&id) else {
            return Heard::Refused(format!("there is no command {id:?} for this device"));
        };
        // The engine gave it up, but the device had it in time and did not say so.
        let late = known.state == State::Expired && known.out.is_null() && state != State::Expired;
        let older = state as u8 <= known.state as u8 && !(state == known.state && out != known.out);
        if !late && (known.state.is_end() || older) {
            return Heard::Old;
        }
        Heard::News(Step::Moved { id: known.order.id.clone(), state, out })
    }

    /// Commands whose deadline has passed before the device had them.
    pub fn expire(&self, now: Timestamp) -> Vec<Step> {
        let over = self.all.iter().filter(|command| command.state == State::Queued && command.order.deadline <= now);
        let moved =
            |command: &Command| Step::Moved { id: command.order.id.clone(), state: State::Expired, out: Value::Null };
        over.map(moved).collect()
    }

    /// Makes a step that the log holds. `received` is the time of its entry.
    pub fn apply(&mut self, step: &Step, received: Timestamp) {
        match step {
            Step::Queued(order) => {
                let order = (**order).clone();
                let (state, out) = (State::Queued, Value::Null);
                self.all.push_back(Command { order, queued: received, state, out, changed: received });
            }
            Step::Moved { id, state, out } => {
                if let Some(command) = self.all.iter_mut().find(|command| command.order.id == *id) {
                    command.state = *state;
                    command.out = out.clone();
                    command.changed = received;
                }
            }
        }
        let mut ended = self.all.iter().filter(|command| command.state.is_end()).count();
        self.all.retain(|command| {
            let forget = ended > REMEMBERED && command.state.is_end();
            ended -= usize::from(forget);
            !forget
        });
    }

    /// The command of that id.
    pub fn find(&self, id: &str) -> Option<&Command> {
        self.all.iter().find(|command| &*command.order.id == id)
    }

    /// All that are known, oldest first.
    pub fn all(&self) -> impl DoubleEndedIterator<Item = &Command> {
        self.all.iter()
    }

    /// Those that have no end and whose time is not over, oldest first.
    pub fn waiting(&self, now: Timestamp) -> impl Iterator<Item = &Command> {
        self.all.iter().filter(move |command| !command.state.is_end() && command.order.deadline > now)
    }

    /// When a deadline passes next.
    pub fn due(&self) -> Option<Timestamp> {
        let queued = self.all.iter().filter(|command| command.state == State::Queued);
        queued.map(|command| command.order.deadline).min()
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        varint::put(out, self.all.len() as u64);
        for command in &self.all {
            command.order.put(out);
            varint::put_signed(out, command.queued.0);
            out.push(command.state as u8);
            varint::put_bytes(out, command.out.to_string().as_bytes());
            varint::put_signed(out, command.changed.0);
        }
    }

    pub(crate) fn get(cursor: &mut Cursor<'_>) -> Result<Self, Broken> {
        let mut all = VecDeque::new();
        for _ in 0..cursor.count(9, "a number of commands")? {
            all.push_back(Command {
                order: Order::get(cursor)?,
                queued: Timestamp(cursor.signed("a time")?),
                state: State::get(cursor)?,
                out: json_value(cursor)?,
                changed: Timestamp(cursor.signed("a time")?),
            });
        }
        Ok(Self { all })
    }
}

/// The id of a command, drawn at `now`: a UUID of version 7 (RFC 9562, section 5.7) from two random numbers.
pub fn draw_id(now: Timestamp, random: [u64; 2]) -> Arc<str> {
    let millis = u64::try_from(now.0 / 1_000_000).unwrap_or(0) & 0xffff_ffff_ffff;
    let [high, low] = random;
    let id = format!(
        "{:08x}-{:04x}-7{:03x}-{:04x}-{:012x}",
        millis >> 16,
        millis & 0xffff,
        high & 0xfff,
        0x8000 | (high >> 12) & 0x3fff,
        low & 0xffff_ffff_ffff
    );
    Arc::from(id)
}

#[cfg(test)]
mod tests;
