//! One object named by a URL, read whole: where reference tables stand if not in files of this machine.
//!
//! `s3://bucket/key` with the usual `AWS_*` environment (`AWS_ENDPOINT` for anything that speaks S3), and
//! `file:///path`. A store that does not answer is given up after a bounded time. Deliberately absent: writing, listing,
//! and remembering what was read.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use object_store_14::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store_14::path::Path;
use object_store_14::{ClientConfigKey, Error, ObjectMeta, ObjectStore, ObjectStoreExt, RetryConfig};
use thiserror::Error as ThisError;
use url::Url;

/// The longest that one request may take, its repetitions apart: 64 MiB at 3 MB/s.
const REQUEST: &str = "20s";
/// How long a connection may take to be made.
const CONNECT: &str = "5s";
/// Repetitions of a request that failed, and the time after which there are none.
const RETRIES: usize = 2;
const RETRY: Duration = Duration::from_secs(20);
/// The longest that asking for credentials may take: the address they are asked from answers at once or never.
const CREDENTIALS: Duration = Duration::from_secs(10);
/// The longest that anything here takes.
const WHOLE: Duration = Duration::from_secs(45);

/// Why an object could not be had. Each says what to do.
#[derive(Debug, Clone, PartialEq, Eq, ThisError)]
pub enum ObjectError {
    /// The URL names no object that this version can read.
    #[error("{message}")]
    Url {
        /// What is wrong.
        message: String,
        /// What would be right.
        help: String,
    },
    /// There is no such object.
    #[error("no such object")]
    NotFound,
    /// The environment has no credentials for the store.
    #[error("no credentials for the object store: {0}")]
    NoCredentials(String),
    /// The store refuses these credentials.
    #[error("the object store refuses access: {0}")]
    Denied(String),
    /// It is larger than the reader takes.
    #[error("{bytes} bytes, and a reference table may have {most}")]
    TooLarge {
        /// Its size.
        bytes: u64,
        /// What may be.
        most: u64,
    },
    /// The store does not answer, or not as one.
    #[error("the object store does not answer: {0}")]
    Away(String),
}

impl ObjectError {
    /// What to do about it.
    pub fn help(&self) -> String {
        match self {
            Self::Url { help, .. } => help.clone(),
            Self::NotFound => "see that the bucket and the key are written as in the store".to_owned(),
            Self::NoCredentials(_) => {
                "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_SKIP_SIGNATURE=true for a public bucket"
                    .to_owned()
            }
            Self::Denied(_) => "see that the credentials may read the object".to_owned(),
            Self::TooLarge { .. } => "keep what pipelines need, and join the rest when you query the tables".to_owned(),
            Self::Away(_) => "see that AWS_ENDPOINT and AWS_REGION are right and that it can be reached".to_owned(),
        }
    }

    /// Whether the same may work a moment later, with nothing changed.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Away(_))
    }
}

/// How an object looks from outside: two that look alike have the same bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stand {
    bytes: u64,
    changed: Option<i64>,
    tag: Option<String>,
    version: Option<String>,
}

impl Stand {
    fn of(meta: ObjectMeta) -> Self {
        let ObjectMeta { last_modified, size, e_tag, version, .. } = meta;
        Self { bytes: size, changed: last_modified.timestamp_nanos_opt(), tag: e_tag, version }
    }
}

/// Settings of object stores, `AWS_...` and their values.
pub type Settings = Vec<(String, String)>;

/// Those of this process.
pub fn environment() -> Settings {
    std::env::vars().filter(|(key, value)| key.starts_with("AWS_") && !value.is_empty()).collect()
}

/// Whether a location is a URL rather than a path.
pub fn is_url(location: &str) -> bool {
    location.contains("://")
}

/// Checks that a URL names an object that can be read here.
pub fn check(location: &str) -> Result<(), ObjectError> {
    parse(location).map(|_| ())
}

fn parse(location: &str) -> Result<Url, ObjectError> {
    let wrong = |message: &str, help: &str| ObjectError::Url { message: message.to_owned(), help: help.to_owned() };
    let url =
        Url::parse(location).map_err(|e| wrong(&format!("this is no URL: {e}"), "as in s3://bucket/sites.csv"))?;
    if !matches!(url.scheme(), "s3" | "file") {
        let message = format!("there is no way to read `{}://`", url.scheme());
        return Err(wrong(&message, "write s3://bucket/key, file:///path, or a path"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(wrong(
            "a URL in a file must not hold credentials",
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        ));
    }
    if url.path().trim_matches('/').is_empty() || url.path().ends_with('/') {
        return Err(wrong("the URL names a folder, not an object", "write the whole key, as in s3://bucket/sites.csv"));
    }
    match (url.scheme(), url.host_str().unwrap_or_default()) {
        ("s3", "") => Err(wrong("the URL names no bucket", "write s3://bucket/key")),
        ("file", host) if !host.is_empty() => {
            Err(wrong("a file has no host", "write file:///path, with three slashes"))
        }
        _ => Ok(url),
    }
}

/// One object.
#[derive(Debug)]
struct Object {
    store: Arc<dyn ObjectStore>,
    path: Path,
}

impl Object {
    async fn open(location: &str, settings: &Settings) -> Result<Self, ObjectError> {
        let url = parse(location)?;
        let unusable = |e: &dyn std::fmt::Display| ObjectError::Url {
            message: format!("the object store cannot be used: {e}"),
            help: "see that the AWS_* variables are right".to_owned(),
        };
        if url.scheme() == "file" {
            let (store, path) = object_store_14::parse_url(&url).map_err(|e| unusable(&e))?;
            return Ok(Self { store: store.into(), path });
        }
        let path = Path::from_url_path(url.path()).map_err(|e| unusable(&e))?;
        let mut builder = AmazonS3Builder::new();
        for (key, value) in settings {
            // Variables that are not about S3 begin with AWS_, too.
            if let Ok(key) = key.to_ascii_lowercase().parse::<AmazonS3ConfigKey>() {
                builder = builder.with_config(key, value);
            }
        }
        let plain = builder.get_config_value(&AmazonS3ConfigKey::Endpoint).is_some_and(|e| e.starts_with("http://"));
        let timeouts = [(ClientConfigKey::Timeout, REQUEST), (ClientConfigKey::ConnectTimeout, CONNECT)];
        for (key, value) in timeouts {
            builder = builder.with_config(AmazonS3ConfigKey::Client(key), value);
        }
        if plain {
            // Who writes http:// has decided that already.
            builder = builder.with_config(AmazonS3ConfigKey::Client(ClientConfigKey::AllowHttp), "true");
        }
        let unsigned = builder.get_config_value(&AmazonS3ConfigKey::SkipSignature).is_some_and(|v| v == "true");
        let retry = RetryConfig { max_retries: RETRIES, retry_timeout: RETRY, ..RetryConfig::default() };
        let store = builder
            .with_url(format!("s3://{}", url.host_str().unwrap_or_default()))
            .with_retry(retry)
            .build()
            .map_err(|e| unusable(&e))?;
        if !unsigned {
            // Asked for by itself, so that their absence is not taken for a store that does not answer.
            let missing = |text: String| ObjectError::NoCredentials(shortened(&text));
            match tokio::time::timeout(CREDENTIALS, store.credentials().get_credential()).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Err(missing(error.to_string())),
                Err(_) => return Err(missing(format!("nobody gave any within {CREDENTIALS:?}"))),
            }
        }
        Ok(Self { store: Arc::new(store), path })
    }

    async fn look(&self) -> Result<Stand, ObjectError> {
        self.store.head(&self.path).await.map(Stand::of).map_err(failed)
    }

    async fn read(&self, most: u64) -> Result<Bytes, ObjectError> {
        let got = self.store.get(&self.path).await.map_err(failed)?;
        if got.meta.size > most {
            return Err(ObjectError::TooLarge { bytes: got.meta.size, most });
        }
        got.bytes().await.map_err(failed)
    }
}

fn failed(error: Error) -> ObjectError {
    match error {
        Error::NotFound { .. } => ObjectError::NotFound,
        Error::PermissionDenied { source, .. } | Error::Unauthenticated { source, .. } => {
            ObjectError::Denied(shortened(&source.to_string()))
        }
        other => ObjectError::Away(shortened(&other.to_string())),
    }
}

/// Answers of stores hold pages of XML.
fn shortened(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(300) {
        Some((end, _)) => format!("{} ...", line.get(..end).unwrap_or_default()),
        None => line,
    }
}

/// Reads an object of at most `most` bytes. Waits for it, on a thread of its own: may be called from anywhere.
pub fn read(location: &str, settings: &Settings, most: u64) -> Result<Bytes, ObjectError> {
    waiting(async { Object::open(location, settings).await?.read(most).await })
}

/// How an object looks now. Waits as [`read`] does.
pub fn look(location: &str, settings: &Settings) -> Result<Stand, ObjectError> {
    waiting(async { Object::open(location, settings).await?.look().await })
}

/// Callers may stand inside of a runtime, whose threads must not wait for one more.
fn waiting<T: Send>(work: impl Future<Output = Result<T, ObjectError>> + Send) -> Result<T, ObjectError> {
    let away = |text: String| ObjectError::Away(text);
    std::thread::scope(|scope| {
        let builder = std::thread::Builder::new().name("object".to_owned());
        let thread = builder.spawn_scoped(scope, || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.map_err(|e| away(format!("no runtime: {e}")))?;
            let bounded = async {
                let late = |_| away(format!("nothing came within {WHOLE:?}"));
                tokio::time::timeout(WHOLE, work).await.map_err(late)?
            };
            let done = runtime.block_on(bounded);
            runtime.shutdown_background();
            done
        });
        let thread = thread.map_err(|e| away(format!("no thread: {e}")))?;
        thread.join().map_err(|_| away("the request failed inside".to_owned()))?
    })
}

#[cfg(test)]
mod tests;
