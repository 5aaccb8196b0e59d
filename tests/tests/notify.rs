//! Promise: whoever has to be told of an incident is told, each message once, though the engine is killed in the middle
//! and the receiver fails.
//!
//! The engine is a process of its own: this program, started again with the arguments of `weir`. The receiver is a real
//! HTTP server, which is down at times, loses answers, and counts by the idempotency key.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const PROJECT: &str = "CREATE STREAM telemetry (temperature DOUBLE);
CREATE ALERT hot ON telemetry WHEN temperature > 80 CLEAR WHEN temperature < 75
  WITH (severity = 'critical', labels = 'team=plant', escalate = 'oncall@0s, lead@3s, nobody@1h');
";

const DEVICES: usize = 6;
const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("run" | "alerts") => return engine::cli::main(),
        _ if arguments.iter().any(|argument| argument == "--list") => return ExitCode::SUCCESS,
        _ => {}
    }
    each_message_counts_once_through_kills();
    println!("test each_message_counts_once_through_kills ... ok");
    ExitCode::SUCCESS
}

/// What the receiver does with a message.
const TAKES: u8 = 0;
const REFUSES: u8 = 1;
const HANGS_UP: u8 = 2;

/// A receiver of webhooks.
#[derive(Default)]
struct Receiver {
    /// Bodies by idempotency key, and how often each came.
    messages: Mutex<BTreeMap<String, (serde_json::Value, usize)>>,
    mood: AtomicU8,
    unsigned: AtomicUsize,
}

impl Receiver {
    fn start() -> (Arc<Self>, u16) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let receiver = Arc::new(Self::default());
        let served = receiver.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let served = served.clone();
                std::thread::spawn(move || while served.serve(&stream).is_some() {});
            }
        });
        (receiver, port)
    }

    /// One request of a connection.
    fn serve(&self, mut stream: &TcpStream) -> Option<()> {
        let mut reader = BufReader::new(stream);
        let mut headers = BTreeMap::new();
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|bytes| *bytes > 0)?;
        assert!(line.starts_with("POST /hook?token=abc "), "{line}");
        loop {
            line.clear();
            reader.read_line(&mut line).ok()?;
            match line.trim_end().split_once(':') {
                Some((name, value)) => headers.insert(name.to_ascii_lowercase(), value.trim().to_owned()),
                None => break,
            };
        }
        let mut body = vec![0; headers["content-length"].parse().unwrap()];
        reader.read_exact(&mut body).ok()?;
        let json: serde_json::Value = serde_json::from_slice(&body).unwrap();
        let key = headers["idempotency-key"].clone();
        assert_eq!(json["key"], key.as_str());
        if !headers.get("weir-signature").is_some_and(|text| text.len() == 71 && text.starts_with("sha256=")) {
            self.unsigned.fetch_add(1, Ordering::Relaxed);
        }
        let mood = self.mood.load(Ordering::Relaxed);
        if mood == REFUSES {
            stream.write_all(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n").ok()?;
            return Some(());
        }
        self.messages.lock().unwrap().entry(key).or_insert((json, 0)).1 += 1;
        if mood == HANGS_UP {
            return None;
        }
        stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").ok()
    }

    fn keys(&self) -> BTreeSet<String> {
        self.messages.lock().unwrap().keys().cloned().collect()
    }
}

struct Engine {
    child: Child,
    mqtt: String,
    http: String,
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Engine {
    fn start(folder: &Path) -> Self {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(folder.join("log.txt")).unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["run", "--insecure", "--config", "weir.toml", "--data", "data", "--pipelines", "pipelines"])
            .current_dir(folder)
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut listeners = BTreeMap::new();
        loop {
            let Some(Ok(line)) = lines.next() else { panic!("the engine ended: {}", log_of(folder)) };
            match line.split_once(' ') {
                Some((name, address)) => listeners.insert(name.to_owned(), address.to_owned()),
                None => break,
            };
        }
        std::thread::spawn(move || lines.count());
        Self { child, mqtt: listeners["mqtt"].clone(), http: listeners["http"].clone() }
    }

    /// kill -9
    fn kill(self) {
        drop(self);
    }

    /// Publishes a temperature of each pump, and returns when all are acknowledged, or the engine has gone.
    fn publish(&self, temperature: f64) {
        let pumps: Vec<String> = (0..DEVICES).map(|device| format!("pump-{device}")).collect();
        let _ = self.try_publish(&pumps, temperature);
    }

    fn try_publish(&self, devices: &[String], temperature: f64) -> std::io::Result<()> {
        let mut stream = TcpStream::connect(&self.mqtt)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.write_all(b"\x10\x10\x00\x04MQTT\x04\x02\x00\x3c\x00\x04test")?;
        stream.read_exact(&mut [0; 4])?;
        for (number, device) in (1u8..).zip(devices) {
            let now = engine::clock::now().0;
            let topic = format!("devices/{device}/telemetry");
            let payload = format!("{{\"ts\":{now},\"temperature\":{temperature}}}");
            let length = 2 + topic.len() + 2 + payload.len();
            let mut packet = vec![0x32];
            packet.extend([(length % 128) as u8 | if length > 127 { 128 } else { 0 }]);
            if length > 127 {
                packet.push((length / 128) as u8);
            }
            packet.extend((topic.len() as u16).to_be_bytes());
            packet.extend(topic.as_bytes());
            packet.extend([0, number]);
            packet.extend(payload.as_bytes());
            stream.write_all(&packet)?;
        }
        stream.read_exact(&mut vec![0; 4 * devices.len()])
    }

    fn request(&self, method: &str, path: &str, body: &str) -> std::io::Result<serde_json::Value> {
        let mut stream = TcpStream::connect(&self.http)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\naccept: application/json\r\ncontent-length: {length}\r\n\r\n"
        );
        stream.write_all(format!("{head}{body}").as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let body = answer.split_once("\r\n\r\n").map(|(_, body)| body).unwrap_or_default();
        Ok(serde_json::from_str(body).unwrap_or_default())
    }

    /// The keys of all messages that there have to be by channel `ops`, from the table of transitions.
    fn expected(&self) -> BTreeSet<String> {
        let sql = "SELECT incident, number, event, told FROM _alerts WHERE told IS NOT NULL";
        let rows = self.request("POST", "/v1/query", sql).unwrap();
        let rows = rows.as_array().expect("rows").iter();
        let text = |row: &serde_json::Value, name: &str| row[name].as_str().unwrap_or_default().to_owned();
        let reached = rows.filter(|row| text(row, "told").split(", ").any(|to| to != "nobody"));
        reached.map(|row| format!("{}-{}-ops", text(row, "incident"), row["number"])).collect()
    }
}

/// `weir alerts`, and whether it succeeded.
fn weir_alerts(engine: &Engine, arguments: &[&str]) -> (String, bool) {
    let url = format!("http://{}", engine.http);
    let mut command = Command::new(std::env::current_exe().unwrap());
    let done = command.arg("alerts").args(arguments).args(["--url", &url]).output().unwrap();
    let text = [done.stdout, done.stderr].concat();
    (String::from_utf8(text).unwrap(), done.status.success())
}

/// Waits until it holds.
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// A silence outlives a kill; what still fires at its end is told of then.
fn silences_outlive_a_kill(folder: &Path, engine: Engine, receiver: &Receiver) -> Engine {
    let silence = ["silence", "device=~valve-.*", "--for", "12s", "--by", "ann", "--reason", "repair"];
    let (said, ok) = weir_alerts(&engine, &silence);
    let ends = Instant::now() + Duration::from_secs(12);
    assert!(ok && said.starts_with("s1: nobody is told where device=~valve-.*"), "{said}");
    engine.kill();
    let engine = Engine::start(folder);
    let listed = engine.request("GET", "/v1/alerts/silences", "").unwrap();
    assert_eq!((&listed["silences"][0]["author"], &listed["silences"][0]["active"]), (&"ann".into(), &true.into()));
    engine.try_publish(&["valve-1".to_owned()], 90.0).unwrap();
    let of_valve = || {
        let messages = receiver.messages.lock().unwrap();
        messages.values().filter(|(json, _)| json["device"] == "valve-1").count()
    };
    until("it fires", || {
        let listed = engine.request("GET", "/v1/alerts?device=valve-1", "").unwrap();
        let alert = &listed["alerts"][0];
        assert!(alert.is_null() || Instant::now() > ends || alert["muted_by"] == "silence s1", "{alert}");
        alert["state"] == "firing"
    });
    assert_eq!(of_valve(), 0, "nobody is told during a silence");
    until("the silence ends", || of_valve() > 0);
    assert!(Instant::now() >= ends - Duration::from_millis(100), "not before");
    let (said, ok) = weir_alerts(&engine, &["unsilence", "s1"]);
    assert!(!ok && said.contains("there is no silence"), "{said}");
    engine
}

fn log_of(folder: &Path) -> String {
    std::fs::read_to_string(folder.join("log.txt")).unwrap_or_default()
}

fn each_message_counts_once_through_kills() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let (receiver, port) = Receiver::start();
    // A receiver that takes connections and never answers.
    let deaf = TcpListener::bind("127.0.0.1:0").unwrap();
    let deaf_port = deaf.local_addr().unwrap().port();
    std::fs::create_dir(folder.join("pipelines")).unwrap();
    std::fs::write(folder.join("pipelines/p.sql"), PROJECT).unwrap();
    std::fs::write(folder.join("secret.txt"), "much secret\n").unwrap();
    let config = format!(
        "[mqtt]\nplain = \"127.0.0.1:0\"\n[http]\nlisten = \"127.0.0.1:0\"\n\
         [durability]\ncheckpoint_every = \"700ms\"\ncut_every = \"2s\"\n\
         [[alerts.channels]]\nname = \"ops\"\nkind = \"webhook\"\nurl = \"http://127.0.0.1:{port}/hook?token=abc\"\n\
         secret_file = \"secret.txt\"\ntimeout = \"5s\"\n\
         [[alerts.channels]]\nname = \"deaf\"\nkind = \"webhook\"\nurl = \"http://127.0.0.1:{deaf_port}/\"\ntimeout = \"20s\"\n\
         [alerts.people]\noncall = [\"ops\", \"deaf\"]\nlead = [\"ops\"]\n"
    );
    std::fs::write(folder.join("weir.toml"), config).unwrap();

    let mut engine = Engine::start(folder);
    // Once more would be flapping.
    let moods = [REFUSES, HANGS_UP, TAKES];
    let mut kills = 0;
    for (round, mood) in moods.into_iter().enumerate() {
        // Kills come sooner or later after what is to be told.
        receiver.mood.store(mood, Ordering::Relaxed);
        engine.publish(90.0 + round as f64);
        std::thread::sleep(Duration::from_millis([2500, 3000, 2150][round]));
        engine.kill();
        kills += 1;
        engine = Engine::start(folder);
        receiver.mood.store(TAKES, Ordering::Relaxed);
        engine.publish(90.0);
        std::thread::sleep(Duration::from_millis(3500));
        engine.publish(60.0);
        std::thread::sleep(Duration::from_millis([2050, 2400, 2200][round]));
        engine.kill();
        kills += 1;
        engine = Engine::start(folder);
    }
    // Nothing is missing, and nothing more comes.
    let until = Instant::now() + PATIENCE;
    let (mut expected, mut got);
    loop {
        (expected, got) = (engine.expected(), receiver.keys());
        if (expected.len() >= 4 * DEVICES && expected.is_subset(&got)) || Instant::now() > until {
            break;
        }
        std::thread::sleep(Duration::from_millis(300));
    }
    let missing: Vec<_> = expected.difference(&got).collect();
    assert!(missing.is_empty(), "missing: {missing:?}; {}", log_of(folder));
    assert!(expected.len() >= 4 * DEVICES, "{expected:?}; {}", log_of(folder));
    std::thread::sleep(Duration::from_secs(1));
    let messages = receiver.messages.lock().unwrap().clone();
    let mut repeats = 0;
    for (key, (json, times)) in &messages {
        let about = json["about"].as_str().unwrap();
        assert!(expected.contains(key) || about == "again", "nobody is to be told this: {json}");
        assert_eq!((json["rule"].as_str(), json["severity"].as_str()), (Some("hot"), Some("critical")), "{json}");
        assert_eq!(json["labels"]["team"], "plant");
        assert_eq!(json["state"], if about == "resolved" { "ok" } else { "firing" });
        repeats += times - 1;
    }
    assert_eq!(receiver.unsigned.load(Ordering::Relaxed), 0, "each is signed");
    // A kill between an answer and its note may repeat what was under way: four messages at a time. While the receiver
    // loses answers it is given one at a time, again and again.
    let lost = 3 * DEVICES;
    assert!(repeats <= kills * 4 + lost, "{repeats} repeats in {} messages", messages.len());
    println!("{} messages, {repeats} repeats, {kills} kills", messages.len());

    let engine = silences_outlive_a_kill(folder, engine, &receiver);
    // What the rules would have done is what they did.
    std::fs::write(folder.join("other.sql"), PROJECT.replace("temperature > 80", "temperature > 91")).unwrap();
    let [rules, other] = ["pipelines", "other.sql"].map(|name| folder.join(name).to_string_lossy().into_owned());
    let (said, ok) = weir_alerts(&engine, &["replay", &rules]);
    assert!(ok && said.contains("hot: ") && said.contains("hot of valve-1  critical value 90 tells oncall"), "{said}");
    let (said, ok) = weir_alerts(&engine, &["replay", &other, "--against", &rules, "--device", "valve-1"]);
    assert!(ok && said.contains("no incidents\n1 differences\n- "), "{said}");

    // The deaf receiver costs its own messages only, and they still wait.
    let channels = engine.request("GET", "/v1/alerts/channels", "").unwrap();
    let of = |name: &str| channels["channels"].as_array().unwrap().iter().find(|c| c["name"] == name).unwrap().clone();
    assert!(of("deaf")["waiting"].as_u64().unwrap() >= 2 * DEVICES as u64, "{channels}");
    assert_eq!((&of("ops")["waiting"], &channels["unreached"]["nobody"][0]), (&0.into(), &"hot".into()), "{channels}");
    assert!(of("ops")["target"].as_str().is_some_and(|target| !target.contains("token")), "{channels}");
    let log = log_of(folder);
    assert!(log.contains("who has no channel"), "{log}");
    assert!(!log.contains("much secret") && !log.contains("token=abc"), "{log}");
    engine.kill();
}
