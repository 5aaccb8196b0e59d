//! Objects from a server that speaks as much S3 as reading takes, and from files.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::sync::Mutex;
use std::time::Instant;

use super::*;

/// Answers GET and HEAD of `/bucket/sites.csv` with what it holds at the time; remembers who asked with a signature.
struct Server {
    address: String,
    held: Arc<Mutex<(u16, &'static str, &'static str)>>,
    signed: Arc<Mutex<Vec<bool>>>,
}

impl Server {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let held = Arc::new(Mutex::new((200, "device,site\na,north\n", "\"one\"")));
        let signed = Arc::new(Mutex::new(Vec::new()));
        let (holds, signs) = (held.clone(), signed.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                let request = lines.next().unwrap().unwrap();
                let head: Vec<String> = lines.map(Result::unwrap).take_while(|line| !line.is_empty()).collect();
                signs
                    .lock()
                    .unwrap()
                    .push(head.iter().any(|line| line.to_lowercase().starts_with("authorization: aws4")));
                let (status, body, tag) = *holds.lock().unwrap();
                let (status, body) = match request.split(' ').nth(1) {
                    Some("/bucket/sites.csv") => (status, body),
                    _ => (404, "<Error><Code>NoSuchKey</Code></Error>"),
                };
                let length = body.len();
                let shown = if request.starts_with("HEAD") { "" } else { body };
                let answer = format!(
                    "HTTP/1.1 {status} x\r\nContent-Length: {length}\r\nETag: {tag}\r\nLast-Modified: Mon, 23 Nov 2026 10:00:00 GMT\r\nConnection: close\r\n\r\n{shown}"
                );
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        Self { address, held, signed }
    }

    fn settings(&self) -> Settings {
        let own = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        vec![
            own("AWS_ENDPOINT", &self.address),
            own("AWS_ACCESS_KEY_ID", "key"),
            own("AWS_SECRET_ACCESS_KEY", "secret"),
            own("AWS_EXECUTION_ENV", "something that is none of S3's settings"),
        ]
    }
}

const LOCATION: &str = "s3://bucket/sites.csv";

#[test]
fn an_object_is_read_with_a_signature_and_its_change_seen() {
    let server = Server::start();
    let settings = server.settings();
    assert_eq!(read(LOCATION, &settings, 100).unwrap(), "device,site\na,north\n");
    let before = look(LOCATION, &settings).unwrap();
    assert_eq!(look(LOCATION, &settings).unwrap(), before);
    *server.held.lock().unwrap() = (200, "device,site\na,south\n", "\"two\"");
    assert_ne!(look(LOCATION, &settings).unwrap(), before, "of the same length and time, but another tag");
    assert_eq!(read(LOCATION, &settings, 100).unwrap(), "device,site\na,south\n");
    assert!(server.signed.lock().unwrap().iter().all(|signed| *signed));
    assert_eq!(read(LOCATION, &settings, 5).unwrap_err(), ObjectError::TooLarge { bytes: 20, most: 5 });
    let public: Settings = [("AWS_ENDPOINT", server.address.as_str()), ("AWS_SKIP_SIGNATURE", "true")]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .to_vec();
    assert!(read(LOCATION, &public, 100).is_ok());
    assert_eq!(server.signed.lock().unwrap().last(), Some(&false));
}

#[test]
fn each_way_to_fail_is_told_apart_and_none_takes_long() {
    let server = Server::start();
    let settings = server.settings();
    assert_eq!(read("s3://bucket/gone.csv", &settings, 9).unwrap_err(), ObjectError::NotFound);
    assert_eq!(look("s3://bucket/gone.csv", &settings).unwrap_err(), ObjectError::NotFound);
    server.held.lock().unwrap().0 = 403;
    assert!(matches!(read(LOCATION, &settings, 9).unwrap_err(), ObjectError::Denied(_)));

    // A port that nobody listens on, and one that takes connections and says nothing.
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap();
    let with = |endpoint: String| {
        let mut settings = server.settings();
        settings[0].1 = endpoint;
        settings
    };
    let address = format!("http://{}", nobody.local_addr().unwrap());
    drop(nobody);
    let began = Instant::now();
    let away = read(LOCATION, &with(address), 9).unwrap_err();
    assert!(away.may_pass() && away.to_string().contains("does not answer"), "{away}");
    assert!(began.elapsed() < WHOLE);

    // Credentials are asked for at an address that answers with an error.
    let metadata = Server::start();
    let mut none = server.settings();
    none.truncate(1);
    none.push(("AWS_METADATA_ENDPOINT".to_owned(), metadata.address.clone()));
    let missing = read(LOCATION, &none, 9).unwrap_err();
    assert!(matches!(missing, ObjectError::NoCredentials(_)), "{missing}");
    assert!(missing.help().contains("AWS_ACCESS_KEY_ID"));
}

#[test]
fn a_file_can_be_named_by_url() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sites.csv");
    let location = format!("file://{}", path.display());
    assert_eq!(read(&location, &Settings::new(), 9).unwrap_err(), ObjectError::NotFound);
    std::fs::write(&path, "a").unwrap();
    assert_eq!(read(&location, &Settings::new(), 9).unwrap(), "a");
    let before = look(&location, &Settings::new()).unwrap();
    std::fs::write(&path, "ab").unwrap();
    assert_ne!(look(&location, &Settings::new()).unwrap(), before);
}

#[test]
fn a_url_that_names_no_object_is_refused() {
    for (location, why) in [
        ("gs://bucket/a.csv", "no way to read `gs://`"),
        ("s3://bucket", "a folder"),
        ("s3://bucket/a/", "a folder"),
        ("s3:///a.csv", "no bucket"),
        ("s3://me:secret@bucket/a.csv", "credentials"),
        ("file://host/a.csv", "no host"),
        ("s3://[/a", "no URL"),
    ] {
        let error = check(location).unwrap_err();
        assert!(error.to_string().contains(why), "{location}: {error}");
    }
    check("s3://bucket/a/b.csv").unwrap();
}
