//! Mails to a server that says what it was told.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use super::*;

/// A conversation, as the server speaks it; the answer to the whole mail is `verdict`. Returned is what the client said.
fn speak(stream: impl Read + Write, verdict: &str) -> Vec<String> {
    let mut stream = BufReader::new(stream);
    let mut said = Vec::new();
    let mut in_mail = false;
    let answer = |stream: &mut BufReader<_>, text: &str| {
        let stream: &mut dyn Write = BufReader::get_mut(stream);
        stream.write_all(text.as_bytes()).and_then(|()| stream.flush())
    };
    if answer(&mut stream, "220 here\r\n").is_err() {
        return said;
    }
    let mut line = String::new();
    while stream.read_line(&mut line).is_ok_and(|bytes| bytes > 0) {
        let text = line.trim_end().to_owned();
        line.clear();
        let reply = match (in_mail, text.as_str()) {
            (true, ".") => verdict,
            (true, _) => "",
            (false, "DATA") => "354 go on\r\n",
            (false, "QUIT") => "221 bye\r\n",
            (false, text) if text.starts_with("EHLO") => "250-here\r\n250 AUTH PLAIN\r\n",
            (false, text) if text.starts_with("AUTH") => "235 welcome\r\n",
            (false, _) => "250 ok\r\n",
        };
        in_mail = text == "DATA" || in_mail && text != ".";
        said.push(text);
        if !reply.is_empty() && answer(&mut stream, reply).is_err() {
            break;
        }
    }
    said
}

/// A server for one connection.
fn serve<T: Send + 'static>(with: impl FnOnce(TcpStream) -> T + Send + 'static) -> (u16, JoinHandle<T>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (port, std::thread::spawn(move || with(listener.accept().unwrap().0)))
}

fn channel(url: &str, ca: Option<&Path>) -> Mail {
    let ca = ca.map_or(String::new(), |path| format!("ca = {:?}\n", path.display().to_string()));
    let text = format!(
        "name = \"mail\"\nkind = \"email\"\nurl = \"{url}\"\nuser = \"weir\"\ntimeout = \"5s\"\n\
         from = \"Weir <weir@plant.example>\"\nto = [\"ann@plant.example\", \"Bob <bob@plant.example>\"]\n{ca}"
    );
    Mail::new(&toml::from_str(&text).unwrap(), Some("word".to_owned())).unwrap()
}

fn message() -> Message {
    serde_json::from_value(serde_json::json!({
        "number": 1, "about": "page", "channel": "mail", "incident": "5f0c6a1e9b3d2c47", "step": 17, "to": "oncall",
        "rule": "overheating", "device": "pump-7", "state": "firing", "severity": "critical",
        "since": 1_800_000_000_000_000_000_i64, "at": 1_800_000_002_000_000_000_i64, "value": 83.2,
        "labels": {"team": "plant"},
    }))
    .unwrap()
}

#[test]
fn a_mail_says_what_happened_and_is_the_same_each_time() {
    let mut mails = Vec::new();
    for _ in 0..2 {
        let (port, server) = serve(|stream| speak(stream, "250 taken\r\n"));
        channel(&format!("smtp://127.0.0.1:{port}"), None).send(&message()).unwrap();
        mails.push(server.join().unwrap());
    }
    // Who greets whom may change with the machine.
    let of = |mail: &Vec<String>| mail.iter().filter(|line| !line.starts_with("EHLO")).cloned().collect::<Vec<_>>();
    assert_eq!(of(&mails[0]), of(&mails[1]));
    let said = mails[0].join("\n");
    for part in [
        "AUTH PLAIN",
        "MAIL FROM:<weir@plant.example>",
        "RCPT TO:<ann@plant.example>",
        "RCPT TO:<bob@plant.example>",
        "Message-ID: <5f0c6a1e9b3d2c47-17-mail@plant.example>",
        "References: <5f0c6a1e9b3d2c47@plant.example>",
        "Subject: [CRITICAL] overheating of pump-7",
        "Date: Fri, 15 Jan 2027 08:00:02 +0000",
        "Auto-Submitted: auto-generated",
        "value 83.2",
        "team: plant",
        "weir alerts ack 5f0c6a1e9b3d2c47",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
}

#[test]
fn what_a_server_refuses_is_told_in_its_words() {
    let (port, server) = serve(|stream| speak(stream, "452 the disk is full\r\n"));
    let error = channel(&format!("smtp://127.0.0.1:{port}"), None).send(&message()).unwrap_err();
    assert!(chain(&error).contains("the disk is full"), "{}", chain(&error));
    server.join().unwrap();
}

#[test]
fn without_tls_nothing_is_said_to_a_server_that_must_have_it() {
    let folder = tempfile::tempdir().unwrap();
    let (ca, _) = authority(folder.path());
    let (port, server) = serve(|stream| speak(stream, "250 taken\r\n"));
    // An authority says that there is to be TLS, also on this machine; this server does not offer it.
    let error = channel(&format!("smtp://localhost:{port}"), Some(&ca)).send(&message()).unwrap_err();
    assert!(chain(&error).to_lowercase().contains("starttls"), "{}", chain(&error));
    let said = server.join().unwrap().join("\n");
    assert!(!said.contains("AUTH") && !said.contains("MAIL"), "{said}");
}

/// An authority's certificate as a file, and the configuration of a server that has one from it.
fn authority(folder: &Path) -> (std::path::PathBuf, Arc<rustls::ServerConfig>) {
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let key = rcgen::KeyPair::generate().unwrap();
    let root = params.self_signed(&key).unwrap();
    let path = folder.join("ca.crt");
    std::fs::write(&path, root.pem()).unwrap();
    let issuer = rcgen::Issuer::new(params, key);
    let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    let key = rcgen::KeyPair::generate().unwrap();
    let leaf = params.signed_by(&key, &issuer).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_no_client_auth().with_single_cert(vec![leaf.der().clone()], key).unwrap();
    (path, Arc::new(config))
}

#[test]
fn a_server_has_to_show_a_certificate_of_an_authority_that_counts() {
    let folder = tempfile::tempdir().unwrap();
    let (ca, config) = authority(folder.path());
    let serve_tls = || {
        let config = config.clone();
        serve(move |stream| {
            let connection = rustls::ServerConnection::new(config).unwrap();
            speak(rustls::StreamOwned::new(connection, stream), "250 taken\r\n")
        })
    };
    let (port, server) = serve_tls();
    channel(&format!("smtps://localhost:{port}"), Some(&ca)).send(&message()).unwrap();
    assert!(server.join().unwrap().iter().any(|line| line.starts_with("RCPT TO:<bob")));

    let (port, server) = serve_tls();
    let error = channel(&format!("smtps://localhost:{port}"), None).send(&message()).unwrap_err();
    assert!(chain(&error).contains("certificate"), "{}", chain(&error));
    assert!(server.join().unwrap().is_empty());
}
