//! The ways to receivers: webhooks, topics of the broker, mails, the log.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use alerts::Message;
use bytes::Bytes;
use reqwest::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER, USER_AGENT};
use thiserror::Error;

use super::mail::Mail;
use crate::config::{ChannelConfig, ChannelKind};
use crate::gateway::Hub;

/// Why a channel cannot be used.
#[derive(Debug, Error)]
pub enum ChannelError {
    /// Its secret cannot be read.
    #[error("alerts.channels: {channel:?}: cannot read the secret in {path}: {why}")]
    Secret {
        /// Which channel.
        channel: String,
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// Its authority cannot be read.
    #[error("alerts.channels: {channel:?}: cannot use the authority in {path}: {why}")]
    Authority {
        /// Which channel.
        channel: String,
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// HTTP or SMTP cannot be spoken.
    #[error("alerts.channels: {channel:?}: {why}")]
    Client {
        /// Which channel.
        channel: String,
        /// Why.
        why: String,
    },
}

/// What became of an attempt.
#[derive(Debug)]
pub(super) enum Outcome {
    /// The receiver has the message.
    Accepted,
    /// It may not have it.
    Failed {
        /// What happened.
        why: String,
        /// How long it wants to be left alone.
        wish: Option<Duration>,
    },
}

/// One channel.
pub(super) struct Channel {
    name: String,
    way: Way,
}

enum Way {
    Webhook(Box<Webhook>),
    Mqtt { hub: Arc<Hub>, topic: Arc<str> },
    Mail(Arc<Mail>),
    Log,
}

struct Webhook {
    client: reqwest::Client,
    url: reqwest::Url,
    key: Option<ring::hmac::Key>,
}

impl Channel {
    pub(super) fn new(config: &ChannelConfig, hub: &Arc<Hub>) -> Result<Self, ChannelError> {
        let name = config.name.clone();
        let way = match config.kind {
            ChannelKind::Log => Way::Log,
            ChannelKind::Mqtt => {
                Way::Mqtt { hub: hub.clone(), topic: Arc::from(config.topic.as_deref().unwrap_or_default()) }
            }
            ChannelKind::Email => Way::Mail(Arc::new(Mail::new(config, secret(config)?)?)),
            ChannelKind::Webhook => {
                let failed = |why: String| ChannelError::Client { channel: name.clone(), why };
                // A receiver that has moved is an error that somebody should see; and a redirect of a POST is none.
                let client = reqwest::Client::builder()
                    .timeout(config.timeout)
                    .redirect(reqwest::redirect::Policy::none())
                    .build()
                    .map_err(|error| failed(chain(&error)))?;
                let url = config.url.as_deref().unwrap_or_default();
                let url = url.parse().map_err(|error| failed(format!("url {url:?}: {error}")))?;
                let key =
                    secret(config)?.map(|secret| ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret.as_bytes()));
                Way::Webhook(Box::new(Webhook { client, url, key }))
            }
        };
        Ok(Self { name, way })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Tries to hand over a message.
    pub(super) async fn send(&self, message: &Message) -> Outcome {
        match &self.way {
            Way::Log => {
                let (to, text) = (message.to.as_deref().unwrap_or_default(), message.text());
                tracing::warn!(channel = self.name, to, key = message.key(), "alert: {text}");
                Outcome::Accepted
            }
            Way::Mqtt { hub, topic } => {
                hub.tell(topic, Bytes::from(message.json()));
                Outcome::Accepted
            }
            Way::Mail(mail) => {
                let (mail, message) = (mail.clone(), message.clone());
                let sent = tokio::task::spawn_blocking(move || mail.send(&message)).await;
                match sent.map_err(|error| error.to_string()).and_then(|sent| sent.map_err(|error| chain(&error))) {
                    Ok(()) => Outcome::Accepted,
                    Err(why) => Outcome::Failed { why, wish: None },
                }
            }
            Way::Webhook(webhook) => {
                let Webhook { client, url, key } = webhook.as_ref();
                let body = message.json();
                let mut request = client
                    .post(url.clone())
                    .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
                    .header(USER_AGENT, HeaderValue::from_static(concat!("weir/", env!("CARGO_PKG_VERSION"))))
                    .header("idempotency-key", message.key());
                if let Some(key) = key {
                    request = request.header("weir-signature", signature(key, &body));
                }
                match request.body(body).send().await {
                    Ok(answer) if answer.status().is_success() => Outcome::Accepted,
                    Ok(answer) => {
                        let wish = answer.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
                        let wish = wish.and_then(|text| text.trim().parse().ok()).map(Duration::from_secs);
                        Outcome::Failed { why: format!("the receiver answers {}", answer.status()), wish }
                    }
                    // Without the address: it may hold a token.
                    Err(error) => Outcome::Failed { why: chain(&error.without_url()), wish: None },
                }
            }
        }
    }
}

fn secret(config: &ChannelConfig) -> Result<Option<String>, ChannelError> {
    let Some(path) = &config.secret_file else {
        return Ok(config.secret.as_ref().map(|secret| secret.reveal().to_owned()));
    };
    let failed = |why: String| ChannelError::Secret { channel: config.name.clone(), path: path.clone(), why };
    let text = std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
    match text.trim() {
        "" => Err(failed("the file is empty".to_owned())),
        secret => Ok(Some(secret.to_owned())),
    }
}

/// `sha256=` and the HMAC of the body in hex.
fn signature(key: &ring::hmac::Key, body: &[u8]) -> String {
    let tag = ring::hmac::sign(key, body);
    tag.as_ref().iter().fold("sha256=".to_owned(), |text, byte| format!("{text}{byte:02x}"))
}

/// An error with all that stands behind it.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signature_is_that_of_rfc_4231() {
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, b"Jefe");
        let expected = "sha256=5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        assert_eq!(signature(&key, b"what do ya want for nothing?"), expected);
    }
}
