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
