//! Who is told of an incident, when, and that they are: everything between a transition in the log and a receiver.
//!
//! - `change`: what of a transition matters here.
//! - `matcher`: `device=~pump-.*`; `silence`: who is not to be told, and for how long.
//! - `settings`: who is reached by which channel.
//! - `case`: one incident and those who were told of it. `desk`: all of them, and the messages on their way (the outbox).
//! - `flap`: alerts that come and go. `inhibit`: incidents that make others not worth telling.
//! - `gateways`: those that are away, and the devices behind them. `group`: what is told together.
//! - `storm`: so many at once that they are one.
//! - `message`: what is sent.
//! - `courier`: when a message to one channel is tried, and when again.
//! - `keeper`: a desk that outlives the process.
//! - `rerun`: rules over records of the past, with the machine that devices have; `compare`: what two runs differ in.
//!
//! Desk and couriers are pure: what happens comes in as values, with the time. Absent: sockets, clocks, and any
//! knowledge of how an incident comes about.

mod case;
mod change;
mod compare;
mod courier;
mod desk;
mod flap;
mod gateways;
mod group;
mod inhibit;
mod keeper;
mod matcher;
mod message;
mod rerun;
mod settings;
mod silence;
mod storm;
#[cfg(test)]
mod tests;
mod time;

pub use change::{Change, Fleet, What};
pub use compare::{Difference, compare};
pub use courier::{Courier, Next, Patience};
pub use desk::{Counts, Desk, Effect, Happening, Open};
pub use inhibit::Inhibit;
pub use keeper::{DESK, KeepError, Keeper, Wake};
pub use matcher::{Facts, Labels, Matcher};
pub use message::{About, Member, Message};
pub use rerun::{Incident, Rerun};
pub use settings::Settings;
pub use silence::{MAX_SILENCE, MAX_SILENCES, MutedBy, Silence, SilenceError, SilenceId};
pub use storm::{LARGEST_FLEET, StormFacts};
pub use time::shown;
