//! The topics below `devices/{id}/`: what each is for, which way it goes, whether it may be retained.
//!
//! Absent: who may use them (that follows from the certificate) and topics outside `devices/`.

use crate::id::{DeviceId, IdError};

/// The first level of every device's topics.
pub const PREFIX: &str = "devices";

/// One of a device's own topics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Leaf {
    /// `telemetry`: frames and plain records.
    Telemetry,
    /// `hello`: first message of a session.
    Hello,
    /// `status`: online or not; the will.
    Status,
    /// `commands/result`
    CommandsResult,
    /// `config/reported`
    ConfigReported,
    /// `shadow/reported`: the default shadow, plain.
    ShadowReported,
    /// `shadow/delta`: the default shadow, plain.
    ShadowDelta,
    /// `ota/status`
    OtaStatus,
    /// `ota/get`
    OtaGet,
    /// `cert/req`
    CertReq,
    /// `hello/ack`
    HelloAck,
    /// `ack`: what is stored.
    Ack,
    /// `commands`
    Commands,
    /// `config`
    Config,
    /// `ota/offer`
    OtaOffer,
    /// `ota/chunk`
    OtaChunk,
    /// `cert/res`
    CertRes,
    /// `errors`: why something was refused.
    Errors,
    /// Anything else.
    Other,
}

/// Which way a topic's messages go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Only the device publishes.
    FromDevice,
    /// Only the engine publishes.
    ToDevice,
    /// Nobody does.
    Neither,
}

impl Leaf {
    /// Every named topic (all but [`Leaf::Other`]).
    pub const ALL: [Self; 18] = [
        Self::Telemetry,
        Self::Hello,
        Self::Status,
        Self::CommandsResult,
        Self::ConfigReported,
        Self::ShadowReported,
        Self::ShadowDelta,
        Self::OtaStatus,
        Self::OtaGet,
        Self::CertReq,
        Self::HelloAck,
        Self::Ack,
        Self::Commands,
        Self::Config,
        Self::OtaOffer,
        Self::OtaChunk,
        Self::CertRes,
        Self::Errors,
    ];

    /// What stands after `devices/{id}/`; empty for [`Leaf::Other`].
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Telemetry => "telemetry",
            Self::Hello => "hello",
            Self::Status => "status",
            Self::CommandsResult => "commands/result",
            Self::ConfigReported => "config/reported",
            Self::ShadowReported => "shadow/reported",
            Self::ShadowDelta => "shadow/delta",
            Self::OtaStatus => "ota/status",
            Self::OtaGet => "ota/get",
            Self::CertReq => "cert/req",
            Self::HelloAck => "hello/ack",
            Self::Ack => "ack",
            Self::Commands => "commands",
            Self::Config => "config",
            Self::OtaOffer => "ota/offer",
            Self::OtaChunk => "ota/chunk",
            Self::CertRes => "cert/res",
            Self::Errors => "errors",
            Self::Other => "",
        }
    }

    /// The topic that ends like this.
    pub fn of(rest: &str) -> Self {
        Self::ALL.into_iter().find(|leaf| leaf.as_str() == rest).unwrap_or(Self::Other)
    }

    /// Which way its messages go.
    pub fn direction(self) -> Direction {
        match self {
            Self::Telemetry
            | Self::Hello
            | Self::Status
            | Self::CommandsResult
            | Self::ConfigReported
            | Self::ShadowReported
            | Self::OtaStatus
            | Self::OtaGet
            | Self::CertReq => Direction::FromDevice,
            Self::HelloAck
            | Self::Ack
            | Self::Commands
            | Self::Config
            | Self::ShadowDelta
            | Self::OtaOffer
            | Self::OtaChunk
            | Self::CertRes
            | Self::Errors => Direction::ToDevice,
            Self::Other => Direction::Neither,
        }
    }

    /// Whether a message on it may be retained.
    pub fn retained(self) -> bool {
        self == Self::Status
    }

    /// The full topic of this device.
    pub fn topic(self, device: &DeviceId) -> String {
        format!("{PREFIX}/{device}/{}", self.as_str())
    }
}

/// A topic below `devices/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceTopic {
    /// Whose.
    pub device: DeviceId,
    /// Which.
    pub leaf: Leaf,
}

/// Why a topic below `devices/` names no device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TopicError {
    /// What stands in the place of the id cannot be one.
    #[error("{name:?} in topic {topic:?} is no device id: {source}")]
    Device {
        /// The whole topic.
        topic: String,
        /// What stands there.
        name: String,
        /// What is wrong with it.
        source: IdError,
    },
    /// `~` alone stands for "no device" in the tables.
    #[error("the device id \"~\" is reserved: give the device another name")]
    Reserved,
}

impl TopicError {
    /// What stood in the place of the device id.
    pub fn name(&self) -> &str {
        match self {
            Self::Device { name, .. } => name,
            Self::Reserved => "~",
        }
    }
}

/// Reads a topic name. `Ok(None)`: it is not below `devices/`.
///
/// ```
/// use device::topic::{self, Leaf};
/// let topic = topic::parse("devices/pump-7/telemetry").unwrap().unwrap();
/// assert_eq!((topic.device.as_str(), topic.leaf), ("pump-7", Leaf::Telemetry));
/// assert!(topic::parse("devices/a b/telemetry").is_err());
/// assert_eq!(topic::parse("plant/line-1"), Ok(None));
/// ```
pub fn parse(topic: &str) -> Result<Option<DeviceTopic>, TopicError> {
    let Some(below) = topic.strip_prefix(PREFIX).and_then(|rest| rest.strip_prefix('/')) else {
        return Ok(None);
    };
    let (name, rest) = below.split_once('/').unwrap_or((below, ""));
    if name == "~" {
        return Err(TopicError::Reserved);
    }
    match DeviceId::new(name) {
        Ok(device) => Ok(Some(DeviceTopic { device, leaf: Leaf::of(rest) })),
        Err(source) => Err(TopicError::Device { topic: topic.to_owned(), name: name.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(topic: &str, expected: Option<(&str, Leaf)>) {
        let got = parse(topic).unwrap();
        assert_eq!(got.as_ref().map(|t| (t.device.as_str(), t.leaf)), expected, "{topic}");
    }

    #[test]
    fn topics_are_told_apart() {
        for leaf in Leaf::ALL {
            check(&leaf.topic(&DeviceId::new("a").unwrap()), Some(("a", leaf)));
        }
        check("devices/a", Some(("a", Leaf::Other)));
        check("devices/a/", Some(("a", Leaf::Other)));
        check("devices/a/telemetry/x", Some(("a", Leaf::Other)));
        check("devices/a/Telemetry", Some(("a", Leaf::Other)));
        check("devices/urn:x:1@b=~c/hello", Some(("urn:x:1@b=~c", Leaf::Hello)));
        check("devices", None);
        check("devicesx/a/telemetry", None);
        check("/devices/a/telemetry", None);
        check("", None);
    }

    #[test]
    fn bad_names_are_refused() {
        let source = |topic: &str| match parse(topic) {
            Err(TopicError::Device { source, .. }) => source,
            other => panic!("{topic}: {other:?}"),
        };
        assert_eq!(source("devices//telemetry"), IdError::Empty);
        assert_eq!(source("devices/"), IdError::Empty);
        assert_eq!(source("devices/+/telemetry"), IdError::Character('+'));
        assert_eq!(source("devices/ü/telemetry"), IdError::Character('ü'));
        assert_eq!(source(&format!("devices/{}/hello", "x".repeat(129))), IdError::TooLong(129));
        assert_eq!(parse("devices/~/telemetry"), Err(TopicError::Reserved));
    }

    #[test]
    fn only_status_is_retained_and_each_topic_has_one_direction() {
        assert_eq!(Leaf::ALL.into_iter().filter(|leaf| leaf.retained()).collect::<Vec<_>>(), [Leaf::Status]);
        assert_eq!(Leaf::Telemetry.direction(), Direction::FromDevice);
        assert_eq!(Leaf::HelloAck.direction(), Direction::ToDevice);
        assert_eq!(Leaf::Other.direction(), Direction::Neither);
    }
}
