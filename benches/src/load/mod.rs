//! The load generator and the truth about its load.
//!
//! `workload` says which records there are and in which order they are sent; `record` and `frame` write them as
//! payloads, `packet` as MQTT packets; `connection` moves bytes; `publish` runs plain clients (J1, J1m), `stream`
//! runs devices that send frames (J1f); `truth` writes what must be stored in the end; `count` is the subscriber
//! beside brokers that store nothing, `sink` a server that forgets everything; `report` prints. No MQTT client library, no async runtime: the generator
//! shares its machine with the system it measures.

mod connection;
mod count;
mod frame;
mod histogram;
mod options;
mod packet;
mod publish;
mod record;
mod report;
mod sink;
mod stream;
mod truth;
mod workload;

use std::io;
use std::sync::Barrier;

pub use histogram::Histogram;
pub use options::{Command, Content, Count, Format, Layout, Options, Publish, Sink, Truth};
pub use report::Outcome;
pub use workload::{Cursor, Reading, Workload, device_name};

/// Does what the command line asks for. False: the load could not be brought to its end.
pub fn run(options: &Options) -> io::Result<bool> {
    match &options.command {
        Command::Publish(publish) => {
            let outcome = publish_all(publish)?;
            outcome.print()?;
            Ok(!outcome.stalled && outcome.unexpected == 0 && outcome.refused == 0)
        }
        Command::Truth(options) => truth::write(options).map(|()| true),
        Command::Count(options) => count::run(options).map(|()| true),
        Command::Sink(options) => sink::run(options).map(|()| true),
    }
}

/// Runs the generator in as many threads as it was told to use.
fn publish_all(options: &Publish) -> io::Result<Outcome> {
    if options.threads == 0 || options.connections < options.threads || options.window == 0 {
        return Err(io::Error::other("--threads and --window are at least 1, --connections at least --threads"));
    }
    if options.format != Format::Frame && options.qos > 1 {
        return Err(io::Error::other("--qos is 0 or 1"));
    }
    let start = Barrier::new(options.threads as usize);
    let mut whole = Outcome::default();
    let results: Vec<io::Result<Outcome>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..options.threads)
            .map(|thread| {
                let start = &start;
                scope.spawn(move || match options.format {
                    Format::Frame => stream::run(options, thread, start),
                    Format::Cbor | Format::Json => publish::run(options, thread, start),
                })
            })
            .collect();
        let gone = |_| Err(io::Error::other("a thread of the generator panicked"));
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(gone)).collect()
    });
    for result in results {
        whole.merge(&result?);
    }
    Ok(whole)
}
