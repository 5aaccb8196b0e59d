//! `load`: MQTT load of known content against any broker, and the truth about it. See `benches::load`.

use std::process::ExitCode;

use benches::load;
use clap::Parser as _;

fn main() -> ExitCode {
    match load::run(&load::Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("load: {error}");
            ExitCode::from(2)
        }
    }
}
