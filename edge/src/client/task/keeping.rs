//! Shadows and commands of the device: what the engine wants, what the device says.

use device::shadow::DEFAULT;
use serde_json::Value;

use super::{Task, act};
use crate::error::EdgeError;
use crate::mqtt::Outgoing;
use crate::twin::Given;

impl Task {
    /// What is desired has come.
    pub(super) async fn wanted(&mut self, payload: Vec<u8>) {
        match self.keeper.change(|twin| twin.wanted(&payload)).await {
            Ok(Ok(Some(shadow))) => self.report(&shadow).await,
            Ok(Ok(None)) => {}
            Ok(Err(error)) => tracing::warn!(device = %self.config.device, %error, "a wish that cannot be read"),
            Err(error) => self.not_stored(&error),
        }
    }

    /// The engine has answered the hello: all there is is reported, which also heals what was lost before.
    pub(super) async fn greeted(&mut self, (dv, delta): (Option<u64>, Option<Vec<u8>>)) {
        match self.keeper.change(|twin| twin.greeted(dv, delta.as_deref())).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::warn!(device = %self.config.device, %error, "a wish that cannot be read"),
            Err(error) => return self.not_stored(&error),
        }
        let mut names: Vec<String> = self.keeper.watch().borrow().shadows().keys().cloned().collect();
        if names.is_empty() && dv.is_some() {
            names.push(DEFAULT.to_owned());
        }
        for name in names {
            self.report(&name).await;
        }
    }

    /// Says all there is in a shadow.
    pub(super) async fn report(&mut self, shadow: &str) {
        let (session, now) = (self.session, self.stamp());
        let report = match self.keeper.change(|twin| twin.report(shadow, session, now)).await {
            Ok(report) => report,
            Err(error) => return self.not_stored(&error),
        };
        let (Some((payload, sent)), Some(link)) = (report, &mut self.link) else { return };
        let message = Outgoing { qos: 1, ..act::telemetry(&self.topics.reported, &payload) };
        match link.publish(&message) {
            Ok(Some(id)) => {
                self.reports.insert(id, sent);
            }
            Ok(None) => {}
            Err(error) => tracing::debug!(device = %self.config.device, %error, "cannot report a shadow"),
        }
    }

    /// The engine has taken a message of ours.
    pub(super) async fn taken(&mut self, id: u16) {
        let Some(sent) = self.reports.remove(&id) else { return };
        match self.keeper.change(|twin| twin.heard(&sent)).await {
            Ok(heard) if heard.again => self.report(sent.shadow()).await,
            Ok(_) => {}
            Err(error) => self.not_stored(&error),
        }
    }

    /// The engine has a command.
    pub(super) async fn commanded(&mut self, payload: Vec<u8>) {
        let now = (self.clock)();
        let given = match self.keeper.change(|twin| twin.given(&payload, now)).await {
            Ok(given) => given,
            // Not answered: it comes again.
            Err(error) => return self.not_stored(&error),
        };
        match given {
            Given::Known(said) => self.say(&said),
            Given::Bad(error) => {
                tracing::warn!(device = %self.config.device, %error, "a command that cannot be read");
            }
            Given::New(task) => {
                let id = task.id.clone();
                let refusal = match &self.config.commands {
                    None => Some("this device does no commands"),
                    Some(commands) => commands.try_send(task).err().map(|_| "too many commands at once"),
                };
                match refusal {
                    None => {
                        let said = serde_json::json!({ "cmd_id": id, "state": "accepted" }).to_string();
                        self.say(said.as_bytes());
                    }
                    Some(why) => self.ended(&id, "rejected", why.into()).await,
                }
            }
        }
    }

    /// A command stands elsewhere now.
    pub(super) async fn ended(&mut self, id: &str, state: &str, out: Value) {
        match self.keeper.change(|twin| twin.ended(id, state, out)).await {
            Ok(said) => self.say(&said),
            Err(error) => self.not_stored(&error),
        }
    }

    /// Without a connection nothing is said: the engine gives the command again, and then it is.
    fn say(&mut self, payload: &[u8]) {
        let Some(link) = &mut self.link else { return };
        let message = Outgoing { qos: 1, ..act::telemetry(&self.topics.result, payload) };
        if let Err(error) = link.publish(&message) {
            tracing::debug!(device = %self.config.device, %error, "cannot say what came of a command");
        }
    }

    fn not_stored(&self, error: &EdgeError) {
        tracing::warn!(device = %self.config.device, %error, "shadows cannot be stored: nothing is taken");
    }
}
