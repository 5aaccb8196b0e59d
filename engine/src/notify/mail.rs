//! Messages as mails (RFC 5322) over SMTP (RFC 5321), with TLS from the first byte (RFC 8314) or after STARTTLS (RFC 3207).

use alerts::{About, Message};
use device::time::Timestamp;
use lettre::message::header::{ContentType, HeaderName, HeaderValue};
use lettre::message::{Mailbox, MessageBuilder};
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Certificate, Tls, TlsParameters};
use lettre::{SmtpTransport, Transport};
use thiserror::Error;

use super::channel::{ChannelError, chain};
use crate::config::ChannelConfig;

/// Ports of RFC 8314 and RFC 6409.
const SMTPS: u16 = 465;
const SUBMISSION: u16 = 587;

/// Why a mail was not accepted.
#[derive(Debug, Error)]
pub(super) enum MailError {
    /// It cannot be written.
    #[error("the mail cannot be written")]
    Write(#[from] lettre::error::Error),
    /// The server did not take it.
    #[error("the mail server")]
    Server(#[from] lettre::transport::smtp::Error),
}

/// A channel of mails.
pub(super) struct Mail {
    server: SmtpTransport,
    from: Mailbox,
    to: Vec<Mailbox>,
}

impl Mail {
    /// `password`: that of the channel's user.
    pub(super) fn new(config: &ChannelConfig, password: Option<String>) -> Result<Self, ChannelError> {
        let failed = |why: String| ChannelError::Client { channel: config.name.clone(), why };
        let text = config.url.as_deref().unwrap_or_default();
        let url = url::Url::parse(text).map_err(|error| failed(format!("url {text:?}: {error}")))?;
        let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let mut tls = TlsParameters::builder(host.clone());
        if let Some(path) = &config.ca {
            let wrong = |why| ChannelError::Authority { channel: config.name.clone(), path: path.clone(), why };
            let pem = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
            tls = tls.add_root_certificate(Certificate::from_pem(&pem).map_err(|error| wrong(chain(&error)))?);
        }
        let tls = tls.build_rustls().map_err(|error| failed(chain(&error)))?;
        let (tls, port) = match url.scheme() {
            "smtps" => (Tls::Wrapper(tls), SMTPS),
            // The mail program of this machine: nobody listens in between, and few have a certificate that counts.
            _ if is_here(&url) && config.ca.is_none() => (Tls::None, SUBMISSION),
            _ => (Tls::Required(tls), SUBMISSION),
        };
        let mut server = SmtpTransport::builder_dangerous(host)
            .port(url.port().unwrap_or(port))
            .tls(tls)
            .timeout(Some(config.timeout));
        if let Some((user, password)) = config.user.clone().zip(password) {
            server = server.credentials(Credentials::new(user, password));
        }
        let address = |text: &str| text.parse::<Mailbox>().map_err(|error| failed(format!("{text:?}: {error}")));
        Ok(Self {
            server: server.build(),
            from: address(config.from.as_deref().unwrap_or_default())?,
            to: config.to.iter().map(|text| address(text)).collect::<Result<_, _>>()?,
        })
    }

    /// Hands a message to the server. Blocks, at most the channel's time for each of its commands.
    pub(super) fn send(&self, message: &Message) -> Result<(), MailError> {
        let mail = self.mail(message)?;
        self.server.send(&mail)?;
        Ok(())
    }

    /// The same for every attempt: servers and readers tell repeats by its number.
    fn mail(&self, message: &Message) -> Result<lettre::Message, lettre::error::Error> {
        let domain = self.from.email.domain();
        let mut mail: MessageBuilder = lettre::Message::builder()
            .from(self.from.clone())
            .date(date(message.at))
            .message_id(Some(format!("<{}@{domain}>", message.key())))
            // All that is said of one incident stands together.
            .references(format!("<{}@{domain}>", message.incident))
            .subject(subject(message))
            .header(ContentType::TEXT_PLAIN);
        for to in &self.to {
            mail = mail.to(to.clone());
        }
        // RFC 3834: nobody's absence note answers it.
        let name = HeaderName::new_from_ascii_str("Auto-Submitted");
        mail.raw_header(HeaderValue::new(name, "auto-generated".to_owned())).body(text(message))
    }
}

fn is_here(url: &url::Url) -> bool {
    match url.host() {
        // Of a scheme that it does not know, the crate takes numbers for a name.
        Some(url::Host::Domain(name)) => {
            name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
        }
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

fn date(at: Timestamp) -> std::time::SystemTime {
    std::time::UNIX_EPOCH + std::time::Duration::from_nanos(at.0.max(0).unsigned_abs())
}

fn subject(message: &Message) -> String {
    let Message { rule, device, severity, .. } = message;
    let what = match message.about {
        About::Page | About::Again => severity.to_uppercase(),
        About::Resolved => "over".to_owned(),
        About::Flapping => "flapping".to_owned(),
        About::Storm => "STORM".to_owned(),
        About::StormOver => "storm over".to_owned(),
    };
    let what = if what.is_empty() { "alert".to_owned() } else { what };
    let of = match (device.as_str(), message.members.len() + message.more) {
        ("", 0) => String::new(),
        ("", devices) => format!(", {devices} incidents"),
        (device, _) => format!(" of {device}"),
    };
    let rule = if rule.is_empty() { "alerts" } else { rule };
    format!("[{what}] {rule}{of}")
}

fn text(message: &Message) -> String {
    let mut text = format!("{}\n", message.text());
    for member in &message.members {
        let value = member.value.map_or(String::new(), |value| format!(", value {value}"));
        text += &format!(
            "\n- {} ({}) of {}: {} since {}{value}",
            member.rule, member.severity, member.device, member.state, member.since
        );
    }
    if message.more > 0 {
        text += &format!("\n- and {} more", message.more);
    }
    if !message.labels.0.is_empty() {
        text += "\n";
        for (name, value) in &message.labels.0 {
            text += &format!("\n{name}: {value}");
        }
    }
    if message.about == About::Page && message.members.is_empty() {
        let incident = &message.incident;
        text += &format!("\n\nTo say that somebody takes care: weir alerts ack {incident}");
    }
    text + "\n"
}

#[cfg(test)]
mod tests;
