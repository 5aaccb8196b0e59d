//! MQTT packets of both versions, built and read in one place, so that the rest need not know which is spoken.

use bytes::BytesMut;
use mqtt_protocol_core::mqtt::packet::{
    ContentType, GenericPacketTrait, Packet, Property, Qos, SubEntry, SubOpts, v3_1_1, v5_0,
};
use mqtt_protocol_core::mqtt::result_code::{ConnectReasonCode, ConnectReturnCode, PubackReasonCode};

use super::{Hail, Incoming, MqttConfig, MqttError, Outgoing, Protocol};

/// A protocol library's complaint as ours.
pub(super) fn broken(error: mqtt_protocol_core::mqtt::result_code::MqttError) -> MqttError {
    MqttError::Protocol(format!("{error:?}"))
}

fn quality(qos: u8) -> Qos {
    if qos == 0 { Qos::AtMostOnce } else { Qos::AtLeastOnce }
}

pub(super) fn connect(config: &MqttConfig, hail: &Hail) -> Result<Packet, MqttError> {
    let keep_alive = u16::try_from(config.keep_alive.as_secs()).unwrap_or(u16::MAX);
    match config.protocol {
        Protocol::V5 => {
            let mut connect = v5_0::Connect::builder()
                .client_id(hail.client_id.as_str())
                .map_err(broken)?
                .clean_start(true)
                .keep_alive(keep_alive);
            if let Some((topic, payload)) = &hail.will {
                connect =
                    connect.will_message(topic.as_str(), payload.clone(), Qos::AtLeastOnce, true).map_err(broken)?;
            }
            Ok(connect.build().map_err(broken)?.into())
        }
        Protocol::V311 => {
            let mut connect = v3_1_1::Connect::builder()
                .client_id(hail.client_id.as_str())
                .map_err(broken)?
                .clean_session(true)
                .keep_alive(keep_alive);
            if let Some((topic, payload)) = &hail.will {
                connect =
                    connect.will_message(topic.as_str(), payload.clone(), Qos::AtLeastOnce, true).map_err(broken)?;
            }
            Ok(connect.build().map_err(broken)?.into())
        }
    }
}

pub(super) fn subscribe(protocol: Protocol, id: u16, topics: &[String]) -> Result<Packet, MqttError> {
    let entries: Result<Vec<SubEntry>, _> =
        topics.iter().map(|topic| SubEntry::new(topic.as_str(), SubOpts::new().set_qos(Qos::AtLeastOnce))).collect();
    let entries = entries.map_err(broken)?;
    Ok(match protocol {
        Protocol::V5 => v5_0::Subscribe::builder().packet_id(id).entries(entries).build().map_err(broken)?.into(),
        Protocol::V311 => v3_1_1::Subscribe::builder().packet_id(id).entries(entries).build().map_err(broken)?.into(),
    })
}

pub(super) fn publish(protocol: Protocol, id: Option<u16>, message: &Outgoing<'_>) -> Result<Packet, MqttError> {
    Ok(match protocol {
        Protocol::V5 => {
            let mut publish = v5_0::Publish::builder()
                .topic_name(message.topic)
                .map_err(broken)?
                .qos(quality(message.qos))
                .retain(message.retain)
                .payload(message.payload);
            if let Some(id) = id {
                publish = publish.packet_id(id).dup(message.dup);
            }
            if let Some(content_type) = message.content_type {
                let content_type = ContentType::new(content_type).map_err(broken)?;
                publish = publish.props(vec![Property::ContentType(content_type)]);
            }
            publish.build().map_err(broken)?.into()
        }
        Protocol::V311 => {
            let mut publish = v3_1_1::Publish::builder()
                .topic_name(message.topic)
                .map_err(broken)?
                .qos(quality(message.qos))
                .retain(message.retain)
                .payload(message.payload);
            if let Some(id) = id {
                publish = publish.packet_id(id).dup(message.dup);
            }
            publish.build().map_err(broken)?.into()
        }
    })
}

pub(super) fn disconnect(protocol: Protocol) -> Result<Packet, MqttError> {
    Ok(match protocol {
        Protocol::V5 => v5_0::Disconnect::builder().build().map_err(broken)?.into(),
        Protocol::V311 => v3_1_1::Disconnect::builder().build().map_err(broken)?.into(),
    })
}

/// Appends a packet's bytes.
pub(super) fn write(packet: &Packet, out: &mut BytesMut) {
    for part in packet.to_buffers() {
        out.extend_from_slice(&part);
    }
}

/// What a packet from the engine means to us.
pub(super) enum Read {
    Incoming(Incoming),
    Connected(Result<(), String>),
    Subscribed(bool),
    Disconnected(String),
    Other,
}

pub(super) fn read(packet: Packet) -> Read {
    match packet {
        Packet::V5_0Publish(publish) => Read::Incoming(Incoming::Message {
            topic: publish.topic_name().to_owned(),
            payload: publish.payload().as_slice().to_vec(),
        }),
        Packet::V3_1_1Publish(publish) => Read::Incoming(Incoming::Message {
            topic: publish.topic_name().to_owned(),
            payload: publish.payload().as_slice().to_vec(),
        }),
        Packet::V5_0Puback(puback) => {
            let code = puback.reason_code().unwrap_or(PubackReasonCode::Success);
            let refused = code.is_failure().then(|| match reason(puback.props.as_deref().unwrap_or_default()) {
                Some(text) => format!("{code}: {text}"),
                None => code.to_string(),
            });
            Read::Incoming(Incoming::Acknowledged { id: puback.packet_id(), refused })
        }
        Packet::V3_1_1Puback(puback) => {
            Read::Incoming(Incoming::Acknowledged { id: puback.packet_id(), refused: None })
        }
        Packet::V5_0Connack(connack) => Read::Connected(match connack.reason_code() {
            ConnectReasonCode::Success => Ok(()),
            code => Err(match reason(&connack.props) {
                Some(text) => format!("{code:?}: {text}"),
                None => format!("{code:?}"),
            }),
        }),
        Packet::V3_1_1Connack(connack) => Read::Connected(match connack.return_code() {
            ConnectReturnCode::Accepted => Ok(()),
            code => Err(format!("{code:?}")),
        }),
        Packet::V5_0Suback(suback) => Read::Subscribed(suback.reason_codes().iter().all(|code| (*code as u8) < 0x80)),
        Packet::V3_1_1Suback(suback) => Read::Subscribed(suback.return_codes().iter().all(|code| (*code as u8) < 0x80)),
        Packet::V5_0Disconnect(disconnect) => {
            let code =
                disconnect.reason_code().map_or_else(|| "no reason given".to_owned(), |code| format!("{code:?}"));
            Read::Disconnected(match reason(disconnect.props.as_deref().unwrap_or_default()) {
                Some(text) => format!("{code}: {text}"),
                None => code,
            })
        }
        _ => Read::Other,
    }
}

fn reason(properties: &[Property]) -> Option<String> {
    properties.iter().find_map(|property| match property {
        Property::ReasonString(text) => Some(text.val().to_owned()),
        _ => None,
    })
}
