//! What becomes of a device that comes in for the first time after it was enrolled: it belongs to its group, and its first
//! configuration is what is desired of it.
//!
//! This is done before its certificate counts as used, so after a crash in between it is done again when the device comes again;
//! done twice it changes nothing.

use std::sync::Arc;

use access::registry::Enrolled;
use actors::node::Node;
use device::id::DeviceId;
use device::shadow::{Answer, Ask, DEFAULT};
use serde_json::Value;

use crate::groups::Groups;

/// Receives devices.
pub(crate) struct Welcome {
    node: Arc<Node>,
    groups: Arc<Groups>,
}

impl Welcome {
    pub(crate) fn new(node: Arc<Node>, groups: Arc<Groups>) -> Self {
        Self { node, groups }
    }

    /// Makes a device a member of its group, and its first configuration what is desired of it. Durable when this returns. What
    /// cannot be at all is told in the log and keeps no device out; an error is something that may go better next time.
    pub(crate) async fn receive(&self, enrolled: &Enrolled, config: Option<Value>) -> Result<(), String> {
        let device = DeviceId::new(&enrolled.device).map_err(|error| error.to_string())?;
        if !enrolled.group.is_empty() {
            let (groups, group, member) = (self.groups.clone(), enrolled.group.clone(), device.clone());
            let joined = tokio::task::spawn_blocking(move || groups.join(&group, &member)).await;
            match joined.map_err(|error| error.to_string())? {
                Ok(()) => {}
                Err(error @ crate::groups::GroupError::Bad(_)) => {
                    tracing::warn!(%device, group = enrolled.group, %error, "a device is not in the group it enrolled in");
                }
                Err(error) => return Err(error.to_string()),
            }
        }
        let Some(Value::Object(config)) = config else { return Ok(()) };
        let ask = Ask {
            shadow: DEFAULT.into(),
            patch: Some(config),
            by: "provisioning".into(),
            request: Some(format!("enrol-{}", enrolled.serial).into()),
            // What an operator has wanted of it meanwhile, or when it was enrolled before, stays.
            if_dv: Some(0),
            ttl: None,
        };
        match self.node.request(&device, |device, now| device.ask(ask.clone(), now)).await {
            Some(Answer::Refused(text)) => {
                tracing::warn!(%device, text, "the first configuration of a device cannot be what is desired of it");
                Ok(())
            }
            Some(_) => Ok(()),
            None => Err("the device's state cannot be written now".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use access::audit::Audit;
    use access::authority::DAY;
    use access::registry::{Certificate, Fact, RegistryError};
    use access::users::Users;
    use device::time::{SECOND, Timestamp};
    use serde_json::json;

    use super::*;
    use crate::clock::Clock;
    use crate::config::Config;
    use crate::core::{Core, Silent};
    use crate::gateway::Identity;
    use crate::groups::Members;
    use crate::login::Login;
    use crate::project;
    use crate::trust::Trust;

    const NOW: Timestamp = Timestamp(1_800_000_000 * SECOND);

    fn config(data: &Path) -> Config {
        let mut config = Config::default();
        config.store.data = data.to_owned();
        config.node.shards = 1;
        config
    }

    /// The engine's door as it opens after a start.
    fn door(data: &Path, core: &Core) -> Trust {
        let (config, clock): (Config, Clock) = (config(data), Arc::new(|| NOW));
        let audit = Arc::new(Audit::open(data).unwrap());
        let users = Arc::new(Users::open(data).unwrap());
        let login = Arc::new(Login::new(users, clock.clone(), config.limits.failed_logins));
        let trust = Trust::open(&config, clock, audit, &login).unwrap();
        trust.guard.receive_by(Welcome::new(core.node.clone(), core.groups.clone()));
        trust
    }

    async fn wanted(core: &Core, patch: Option<Value>) -> Value {
        let id = DeviceId::new("pump-7").unwrap();
        if let Some(Value::Object(patch)) = patch {
            let ask = Ask {
                shadow: DEFAULT.into(),
                patch: Some(patch),
                by: "ada".into(),
                request: None,
                if_dv: None,
                ttl: None,
            };
            let answer = core.node.request(&id, |device, now| device.ask(ask.clone(), now)).await;
            assert!(matches!(answer, Some(Answer::Changed(_))), "{answer:?}");
        }
        let view = core.node.look(&id, |device| device.shadow(DEFAULT, NOW)).await.unwrap().unwrap();
        Value::Object(view.desired)
    }

    /// The engine is killed when the device is in its group and has its configuration, and its certificate does not count as used.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_crash_before_the_certificate_counts_loses_and_undoes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path();
        let project = project::check(Vec::new()).unwrap();
        let core = Core::open(&config(data), project, Arc::new(|| NOW), Arc::new(Silent)).await.unwrap();
        let trust = door(data, &core);
        let enrolled = Enrolled {
            device: "pump-7".into(),
            key: "k".into(),
            serial: "1".into(),
            group: "line-1".into(),
            claim: None,
            origin: None,
            hw: String::new(),
            labels: std::collections::BTreeMap::new(),
        };
        let certificate = Certificate {
            serial: "1".into(),
            subject: "urn:dev:main:pump-7".into(),
            key: "k".into(),
            not_before: NOW.plus(-DAY),
            not_after: NOW.plus(365 * DAY),
            pending: true,
            replaces: None,
            issuer: None,
        };
        let first = json!({ "interval": 5 });
        let facts = vec![
            Fact::Config { group: "line-1".into(), config: Some(first.clone()) },
            Fact::Issued(certificate),
            Fact::Enrolled(enrolled.clone()),
        ];
        trust.registry().change::<RegistryError>(NOW, |_| Ok(facts)).unwrap();
        let welcome = Welcome::new(core.node.clone(), core.groups.clone());
        welcome.receive(&enrolled, Some(first.clone())).await.unwrap();
        assert_eq!(wanted(&core, None).await, first);
        drop(trust);

        let trust = door(data, &core);
        let identity = Identity::device(DeviceId::new("pump-7").unwrap(), "1".into(), [].into());
        assert!(trust.guard.awaits(&identity), "it counts as used before it was");
        assert_eq!(wanted(&core, None).await, first);
        // Somebody wants something else before the device comes again.
        let changed = wanted(&core, Some(json!({ "interval": 9 }))).await;
        trust.guard.clone().came_in(&identity).await.unwrap();
        assert!(!trust.guard.awaits(&identity));
        assert_eq!(wanted(&core, None).await, changed);
        assert_eq!(core.groups.get("line-1"), Some(Members::Devices(vec!["pump-7".into()])));
        core.shutdown(false).await.unwrap();
    }
}
