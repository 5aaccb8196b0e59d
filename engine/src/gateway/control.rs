//! Control packets of clients, read by the protocol library inside a shell of our own.
//!
//! The library is trusted to take packets apart, not to be strict: it accepts U+0000, trailing bytes and some
//! flags that the standard forbids, and it holds `unwrap`s. So the shell checks what it does not, and a panic in
//! it is caught and becomes a malformed packet.

use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;
use mqtt_protocol_core::mqtt::packet::{Properties, Property, Qos, RetainHandling, v3_1_1, v5_0};
use mqtt_protocol_core::mqtt::result_code::MqttError;

use super::fault::{Fault, code};
use super::frame::{self, Version};
use super::topic;

/// CONNECT.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Connect {
    pub(crate) version: Version,
    pub(crate) client_id: String,
    pub(crate) clean: bool,
    pub(crate) keep_alive: u16,
    pub(crate) will: Option<Will>,
    /// Seconds; `u32::MAX` is for ever.
    pub(crate) session_expiry: u32,
    pub(crate) receive_maximum: u16,
    pub(crate) maximum_packet: u32,
    pub(crate) topic_aliases: u16,
    /// Whether reason strings are welcome.
    pub(crate) problem_information: bool,
    /// Whether it asked for extended authentication, which there is none of.
    pub(crate) authentication: bool,
    /// User name and password.
    pub(crate) login: Option<(String, Password)>,
}

/// A password, which no `{:?}` shows.
#[derive(Clone, PartialEq)]
pub(crate) struct Password(pub(crate) Vec<u8>);

impl std::fmt::Debug for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Password(..)")
    }
}

fn login(user: Option<&str>, password: Option<&[u8]>) -> Option<(String, Password)> {
    user.zip(password).map(|(user, password)| (user.to_owned(), Password(password.to_vec())))
}

/// The message that a client leaves behind.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Will {
    pub(crate) topic: String,
    pub(crate) payload: Bytes,
    pub(crate) qos: u8,
    pub(crate) retain: bool,
    /// Seconds.
    pub(crate) delay: u32,
    pub(crate) expiry: Option<u32>,
    pub(crate) content_type: Option<String>,
    /// What goes on to receivers, encoded.
    pub(crate) properties: Bytes,
}

/// SUBSCRIBE.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Subscribe {
    pub(crate) packet_id: u16,
    pub(crate) id: Option<u32>,
    pub(crate) filters: Vec<(String, Options)>,
}

/// The options of one subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) qos: u8,
    pub(crate) no_local: bool,
    pub(crate) as_published: bool,
    pub(crate) retained: Retained,
}

/// Retain handling: when a new subscription is given the retained messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Retained {
    Always,
    IfNew,
    Never,
}

/// UNSUBSCRIBE.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Unsubscribe {
    pub(crate) packet_id: u16,
    pub(crate) filters: Vec<String>,
}

/// DISCONNECT of a client.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Disconnect {
    pub(crate) code: u8,
    pub(crate) session_expiry: Option<u32>,
}

/// PUBACK, PUBREC, PUBREL or PUBCOMP of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ack {
    pub(crate) packet_id: u16,
    pub(crate) code: u8,
}

/// Runs a parser of the library: a panic, an error and trailing bytes all become a fault.
fn guarded<T>(body: &[u8], parse: impl FnOnce(&[u8]) -> Result<(T, usize), MqttError>) -> Result<T, Fault> {
    match catch_unwind(AssertUnwindSafe(|| parse(body))) {
        Ok(Ok((packet, used))) if used == body.len() => Ok(packet),
        Ok(Ok(_)) => Err(Fault::malformed("the packet is longer than its content")),
        Ok(Err(MqttError::ProtocolError)) => Err(Fault::protocol("the packet breaks the protocol")),
        Ok(Err(_)) => Err(Fault::malformed("the packet cannot be read")),
        Err(_) => Err(Fault::malformed("the packet cannot be read")),
    }
}

/// Which version a CONNECT asks for. `Err` holds the level that is not spoken here.
pub(crate) fn version(body: &[u8]) -> Result<Result<Version, u8>, Fault> {
    let mut rest = body;
    match frame::take_field(&mut rest)? {
        b"MQTT" => {}
        b"MQIsdp" => return Ok(Err(3)),
        _ => return Err(Fault::protocol("the protocol name is not MQTT")),
    }
    Ok(match frame::take_u8(&mut rest)? {
        4 => Ok(Version::V3),
        5 => Ok(Version::V5),
        other => Err(other),
    })
}

/// Reads a CONNECT body of a version that [`version`] found.
pub(crate) fn connect(version: Version, body: &[u8]) -> Result<Connect, Fault> {
    let flags = body.get(7).copied().unwrap_or(0);
    if flags & 1 != 0 {
        return Err(Fault::malformed("the reserved connect flag is set"));
    }
    let (will, will_qos, will_retain) = (flags & 4 != 0, (flags >> 3) & 3, flags & 0x20 != 0);
    if will_qos == 3 || (!will && (will_qos != 0 || will_retain)) {
        return Err(Fault::malformed("the will flags contradict each other"));
    }
    if version == Version::V3 && flags & 0xc0 == 0x40 {
        return Err(Fault::malformed("a password stands without a user name"));
    }
    let connect = match version {
        Version::V3 => {
            let packet = guarded(body, v3_1_1::Connect::parse)?;
            let will = packet.will_topic().map(|topic| Will {
                topic: topic.to_owned(),
                payload: Bytes::copy_from_slice(packet.will_payload().unwrap_or_default()),
                qos: will_qos,
                retain: will_retain,
                delay: 0,
                expiry: None,
                content_type: None,
                properties: Bytes::new(),
            });
            plain_text([packet.client_id(), packet.user_name().unwrap_or_default()])?;
            Connect {
                version,
                client_id: packet.client_id().to_owned(),
                clean: packet.clean_session(),
                keep_alive: packet.keep_alive(),
                will,
                session_expiry: if packet.clean_session() { 0 } else { u32::MAX },
                receive_maximum: u16::MAX,
                maximum_packet: u32::MAX,
                topic_aliases: 0,
                problem_information: false,
                authentication: false,
                login: login(packet.user_name(), packet.password()),
            }
        }
        Version::V5 if flags & 0xc0 == 0x40 => connect_v5(will_qos, will_retain, &without_password(body)?)?,
        Version::V5 => connect_v5(will_qos, will_retain, body)?,
    };
    if let Some(will) = &connect.will {
        topic::name(will.topic.as_bytes())?;
    }
    Ok(connect)
}

fn connect_v5(will_qos: u8, will_retain: bool, body: &[u8]) -> Result<Connect, Fault> {
    let packet = guarded(body, v5_0::Connect::parse)?;
    plain_text([packet.client_id(), packet.user_name().unwrap_or_default()])?;
    let mut connect = Connect {
        version: Version::V5,
        client_id: packet.client_id().to_owned(),
        clean: packet.clean_start(),
        keep_alive: packet.keep_alive(),
        will: None,
        session_expiry: 0,
        receive_maximum: u16::MAX,
        maximum_packet: u32::MAX,
        topic_aliases: 0,
        problem_information: true,
        authentication: false,
        login: login(packet.user_name(), packet.password()),
    };
    check_strings(packet.props())?;
    for property in packet.props() {
        match property {
            Property::SessionExpiryInterval(p) => connect.session_expiry = p.val(),
            Property::ReceiveMaximum(p) if p.val() == 0 => return Err(Fault::protocol("receive maximum 0")),
            Property::ReceiveMaximum(p) => connect.receive_maximum = p.val(),
            Property::MaximumPacketSize(p) if p.val() == 0 => return Err(Fault::protocol("maximum packet size 0")),
            Property::MaximumPacketSize(p) => connect.maximum_packet = p.val(),
            Property::TopicAliasMaximum(p) => connect.topic_aliases = p.val(),
            Property::RequestProblemInformation(p) => connect.problem_information = p.val() != 0,
            Property::AuthenticationMethod(_) => connect.authentication = true,
            Property::AuthenticationData(_) if !has_method(packet.props()) => {
                return Err(Fault::protocol("authentication data without a method"));
            }
            _ => {}
        }
    }
    if let Some(topic) = packet.will_topic() {
        let mut will = Will {
            topic: topic.to_owned(),
            payload: Bytes::copy_from_slice(packet.will_payload().unwrap_or_default()),
            qos: will_qos,
            retain: will_retain,
            delay: 0,
            expiry: None,
            content_type: None,
            properties: Bytes::new(),
        };
        check_strings(packet.will_props())?;
        let mut forwarded = Vec::new();
        for property in packet.will_props() {
            match property {
                Property::WillDelayInterval(p) => will.delay = p.val(),
                Property::MessageExpiryInterval(p) => will.expiry = Some(p.val()),
                other => {
                    match other {
                        Property::ContentType(p) => {
                            plain_text([p.val()])?;
                            will.content_type = Some(p.val().to_owned());
                        }
                        Property::ResponseTopic(p) => {
                            topic::name(p.val().as_bytes())?;
                        }
                        _ => {}
                    }
                    forwarded.extend_from_slice(&other.to_continuous_buffer());
                }
            }
        }
        will.properties = Bytes::from(forwarded);
        connect.will = Some(will);
    }
    Ok(connect)
}

/// A CONNECT without its password. MQTT 5 allows a password without a user name, the library does not; here one alone says
/// nothing.
fn without_password(body: &[u8]) -> Result<Vec<u8>, Fault> {
    // Name, level, flags, keep alive.
    let mut rest = body.get(10..).ok_or(Fault::malformed("the packet ends too early"))?;
    frame::take_properties(&mut rest)?;
    frame::take_field(&mut rest)?;
    let flags = body.get(7).copied().unwrap_or(0);
    if flags & 4 != 0 {
        frame::take_properties(&mut rest)?;
        frame::take_field(&mut rest)?;
        frame::take_field(&mut rest)?;
    }
    let mut short = body.get(..body.len() - rest.len()).unwrap_or_default().to_vec();
    frame::take_field(&mut rest)?;
    if !rest.is_empty() {
        return Err(Fault::malformed("the packet is longer than its content"));
    }
    if let Some(flags) = short.get_mut(7) {
        *flags &= !0x40;
    }
    Ok(short)
}

fn has_method(properties: &Properties) -> bool {
    properties.iter().any(|p| matches!(p, Property::AuthenticationMethod(_)))
}

fn plain_text<const N: usize>(texts: [&str; N]) -> Result<(), Fault> {
    if texts.iter().any(|text| text.contains('\0')) {
        return Err(Fault::malformed("a string holds U+0000"));
    }
    Ok(())
}

/// Strings that the library lets through with U+0000 in them.
fn check_strings(properties: &Properties) -> Result<(), Fault> {
    properties.iter().try_for_each(|property| match property {
        Property::UserProperty(p) => plain_text([p.key(), p.val()]),
        Property::ReasonString(p) => plain_text([p.val()]),
        _ => Ok(()),
    })
}

/// Reads a SUBSCRIBE body. Filters are checked by the caller, one by one.
pub(crate) fn subscribe(version: Version, body: &[u8]) -> Result<Subscribe, Fault> {
    let mut subscribe = Subscribe { packet_id: 0, id: None, filters: Vec::new() };
    let entries = match version {
        Version::V3 => {
            let packet = guarded(body, v3_1_1::Subscribe::parse)?;
            subscribe.packet_id = packet.packet_id();
            packet.entries().to_vec()
        }
        Version::V5 => {
            let packet = guarded(body, v5_0::Subscribe::parse)?;
            subscribe.packet_id = packet.packet_id();
            check_strings(packet.props())?;
            for property in packet.props() {
                if let Property::SubscriptionIdentifier(p) = property {
                    if p.val() == 0 || subscribe.id.is_some() {
                        return Err(Fault::protocol("SUBSCRIBE takes one subscription identifier, above 0"));
                    }
                    subscribe.id = Some(p.val());
                }
            }
            packet.entries().to_vec()
        }
    };
    if subscribe.packet_id == 0 {
        return Err(Fault::protocol("packet identifier 0 must not be used"));
    }
    for entry in entries {
        plain_text([entry.topic_filter()])?;
        let options = entry.sub_opts();
        if version == Version::V3 && options.to_buffer()[0] & 0xfc != 0 {
            return Err(Fault::malformed("reserved bits of a requested QoS are set"));
        }
        let options = Options {
            qos: qos(options.qos()),
            no_local: options.nl(),
            as_published: options.rap(),
            retained: match options.rh() {
                RetainHandling::SendRetained => Retained::Always,
                RetainHandling::SendRetainedIfNotExists => Retained::IfNew,
                RetainHandling::DoNotSendRetained => Retained::Never,
            },
        };
        if options.no_local && entry.topic_filter().starts_with("$share/") {
            return Err(Fault::protocol("no local must not be set on a shared subscription"));
        }
        subscribe.filters.push((entry.topic_filter().to_owned(), options));
    }
    Ok(subscribe)
}

fn qos(qos: Qos) -> u8 {
    match qos {
        Qos::AtMostOnce => 0,
        Qos::AtLeastOnce => 1,
        Qos::ExactlyOnce => 2,
    }
}

/// Reads an UNSUBSCRIBE body.
pub(crate) fn unsubscribe(version: Version, body: &[u8]) -> Result<Unsubscribe, Fault> {
    let (packet_id, entries) = match version {
        Version::V3 => {
            let packet = guarded(body, v3_1_1::Unsubscribe::parse)?;
            (packet.packet_id(), packet.entries().clone())
        }
        Version::V5 => {
            let packet = guarded(body, v5_0::Unsubscribe::parse)?;
            check_strings(packet.props())?;
            (packet.packet_id(), packet.entries().clone())
        }
    };
    if packet_id == 0 {
        return Err(Fault::protocol("packet identifier 0 must not be used"));
    }
    let filters: Vec<String> = entries.iter().map(|entry| entry.as_str().to_owned()).collect();
    filters.iter().try_for_each(|filter| plain_text([filter.as_str()]))?;
    Ok(Unsubscribe { packet_id, filters })
}

/// Reads a DISCONNECT body.
pub(crate) fn disconnect(version: Version, body: &[u8]) -> Result<Disconnect, Fault> {
    if body.is_empty() {
        return Ok(Disconnect { code: code::SUCCESS, session_expiry: None });
    }
    if version == Version::V3 {
        return Err(Fault::malformed("DISCONNECT has no content in MQTT 3.1.1"));
    }
    let packet = guarded(body, v5_0::Disconnect::parse)?;
    let mut session_expiry = None;
    packet.props().as_ref().map_or(Ok(()), check_strings)?;
    for property in packet.props().iter().flatten() {
        match property {
            Property::SessionExpiryInterval(p) => session_expiry = Some(p.val()),
            Property::ServerReference(_) => return Err(Fault::protocol("a client must not send a server reference")),
            _ => {}
        }
    }
    Ok(Disconnect { code: body.first().copied().unwrap_or(0), session_expiry })
}

/// Reads the body of PUBACK, PUBREC, PUBREL or PUBCOMP.
pub(crate) fn ack(version: Version, kind: u8, body: &[u8]) -> Result<Ack, Fault> {
    if let [high, low] = body {
        let packet_id = u16::from_be_bytes([*high, *low]);
        return if packet_id == 0 {
            Err(Fault::protocol("packet identifier 0 must not be used"))
        } else {
            Ok(Ack { packet_id, code: code::SUCCESS })
        };
    }
    if version == Version::V3 {
        return Err(Fault::malformed("an acknowledgement has two bytes in MQTT 3.1.1"));
    }
    let strings = |properties: &Option<Properties>| properties.as_ref().map_or(Ok(()), check_strings);
    match kind {
        frame::kind::PUBACK => strings(guarded(body, v5_0::Puback::parse)?.props())?,
        frame::kind::PUBREC => strings(guarded(body, v5_0::Pubrec::parse)?.props())?,
        frame::kind::PUBREL => strings(guarded(body, v5_0::Pubrel::parse)?.props())?,
        _ => strings(guarded(body, v5_0::Pubcomp::parse)?.props())?,
    }
    match body {
        [high, low, code, ..] => Ok(Ack { packet_id: u16::from_be_bytes([*high, *low]), code: *code }),
        _ => Err(Fault::malformed("the packet ends too early")),
    }
}
