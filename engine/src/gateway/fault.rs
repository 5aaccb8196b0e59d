//! What ends a connection, and the MQTT 5 reason codes that the gateway speaks.

use thiserror::Error;

/// A MQTT 5 reason code as it stands on the wire.
pub(crate) mod code {
    pub(crate) const SUCCESS: u8 = 0x00;
    pub(crate) const NO_SUBSCRIPTION: u8 = 0x11;
    pub(crate) const UNSPECIFIED: u8 = 0x80;
    pub(crate) const MALFORMED: u8 = 0x81;
    pub(crate) const PROTOCOL: u8 = 0x82;
    pub(crate) const IMPLEMENTATION: u8 = 0x83;
    pub(crate) const VERSION: u8 = 0x84;
    pub(crate) const CLIENT_ID: u8 = 0x85;
    pub(crate) const BAD_LOGIN: u8 = 0x86;
    pub(crate) const NOT_AUTHORIZED: u8 = 0x87;
    pub(crate) const BUSY: u8 = 0x89;
    pub(crate) const SHUTTING_DOWN: u8 = 0x8B;
    pub(crate) const AUTH_METHOD: u8 = 0x8C;
    pub(crate) const KEEP_ALIVE: u8 = 0x8D;
    pub(crate) const TAKEN_OVER: u8 = 0x8E;
    pub(crate) const TOPIC_FILTER: u8 = 0x8F;
    pub(crate) const TOPIC_NAME: u8 = 0x90;
    pub(crate) const PACKET_ID_UNKNOWN: u8 = 0x92;
    pub(crate) const RECEIVE_MAXIMUM: u8 = 0x93;
    pub(crate) const TOPIC_ALIAS: u8 = 0x94;
    pub(crate) const TOO_LARGE: u8 = 0x95;
    pub(crate) const QUOTA: u8 = 0x97;
    pub(crate) const PAYLOAD_FORMAT: u8 = 0x99;
    pub(crate) const CONNECTION_RATE: u8 = 0x9F;
}

/// Something a peer must not send: the reason code for MQTT 5, and the words for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("{text}")]
pub(crate) struct Fault {
    /// Goes into DISCONNECT or CONNACK.
    pub(crate) code: u8,
    /// What was wrong.
    pub(crate) text: &'static str,
}

impl Fault {
    pub(crate) const fn malformed(text: &'static str) -> Self {
        Self { code: code::MALFORMED, text }
    }

    pub(crate) const fn protocol(text: &'static str) -> Self {
        Self { code: code::PROTOCOL, text }
    }

    pub(crate) const fn new(code: u8, text: &'static str) -> Self {
        Self { code, text }
    }
}
