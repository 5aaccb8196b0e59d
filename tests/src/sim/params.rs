//! What a world is made of: everything follows from the seed; each figure can be set to make a world smaller.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use super::random::Random;

/// A kind of trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// Messages get lost.
    Loss,
    /// Messages take long, and overtake each other.
    Delay,
    /// Messages come twice.
    Twice,
    /// Connections break.
    Cut,
    /// A connection stands and carries nothing.
    HalfOpen,
    /// Nobody reaches the engine for a while.
    Partition,
    /// An append to the log fails, with or without effect.
    Log,
    /// The log refuses everything for a while, as on a full disk.
    Full,
    /// The state store fails, with or without effect.
    State,
    /// The store of files fails, with or without effect.
    Files,
    /// Storage takes long.
    Slow,
    /// The engine is killed at some moment.
    Kill,
    /// The engine is killed at an I/O call: before it, in the middle, or after it.
    KillAtIo,
    /// A device is killed, and loses what it had not synced.
    Device,
    /// A device's storage fails.
    Media,
    /// Clocks are wrong and jump.
    Clock,
    /// A device actor fails.
    Actor,
    /// Devices sleep after seconds of silence.
    Sleep,
    /// Payloads that nobody can read, and names that are none.
    Garbage,
    /// The pipeline project is another one when the engine starts again.
    Edit,
}

impl Fault {
    /// All kinds.
    pub const ALL: [Self; 20] = [
        Self::Loss,
        Self::Delay,
        Self::Twice,
        Self::Cut,
        Self::HalfOpen,
        Self::Partition,
        Self::Log,
        Self::Full,
        Self::State,
        Self::Files,
        Self::Slow,
        Self::Kill,
        Self::KillAtIo,
        Self::Device,
        Self::Media,
        Self::Clock,
        Self::Actor,
        Self::Sleep,
        Self::Garbage,
        Self::Edit,
    ];

    /// Whether it makes the engine end and start again.
    pub fn ends_the_engine(self) -> bool {
        matches!(self, Self::Kill | Self::KillAtIo | Self::Files | Self::State)
    }

    fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }
}

/// A world.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Params {
    /// What everything is drawn from.
    pub seed: u64,
    /// How many shards the engine has.
    pub shards: u16,
    /// How many devices there are.
    pub devices: u64,
    /// How many records each device records while there is trouble.
    pub records: u64,
    /// For how many virtual seconds there is trouble.
    pub seconds: u64,
    /// Kinds of trouble.
    pub faults: BTreeSet<Fault>,
}

impl Params {
    /// The world of a seed.
    pub fn of(seed: u64) -> Self {
        let mut random = Random::named(seed, "world");
        let quiet = random.chance(20);
        let faults = Fault::ALL.into_iter().filter(|fault| *fault != Fault::Edit);
        let faults = faults.filter(|_| random.chance(450) && !quiet).collect();
        let mut this = Self {
            seed,
            shards: random.between(1, 2) as u16,
            devices: random.between(1, 5),
            records: random.between(5, 90),
            seconds: random.between(10, 90),
            faults,
        };
        // Drawn last, so that worlds that were there before it stay what they were but for this.
        if random.chance(300) && !quiet {
            this.faults.insert(Fault::Edit);
        }
        this
    }

    /// Whether there is this kind of trouble.
    pub fn has(&self, fault: Fault) -> bool {
        self.faults.contains(&fault)
    }
}

impl fmt::Display for Params {
    /// As arguments of the command that runs this world.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = Self::of(self.seed);
        write!(f, "--seed {}", self.seed)?;
        for (name, own, other) in [
            ("shards", u64::from(self.shards), u64::from(whole.shards)),
            ("devices", self.devices, whole.devices),
            ("records", self.records, whole.records),
            ("seconds", self.seconds, whole.seconds),
        ] {
            if own != other {
                write!(f, " --{name} {own}")?;
            }
        }
        if self.faults != whole.faults {
            let names: Vec<String> = self.faults.iter().map(|fault| fault.name()).collect();
            let names = if names.is_empty() { "none".to_owned() } else { names.join(",") };
            write!(f, " --faults {names}")?;
        }
        Ok(())
    }
}

impl FromStr for Params {
    type Err = String;

    /// Reads what [`fmt::Display`] writes.
    fn from_str(text: &str) -> Result<Self, String> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let mut params: Option<Self> = None;
        for pair in words.chunks(2) {
            let [name, value] = pair else { return Err(format!("{} lacks a value", pair.concat())) };
            if *name == "--faults" {
                let params = params.as_mut().ok_or("the seed comes first")?;
                params.faults = faults(value)?;
                continue;
            }
            let number: u64 = value.parse().map_err(|_| format!("{value} is no number"))?;
            match (*name, params.as_mut()) {
                ("--seed", _) => params = Some(Self::of(number)),
                ("--shards", Some(params)) => params.shards = number.clamp(1, 16) as u16,
                ("--devices", Some(params)) => params.devices = number,
                ("--records", Some(params)) => params.records = number,
                ("--seconds", Some(params)) => params.seconds = number,
                _ => return Err(format!("{name} is unknown, or the seed does not come first")),
            }
        }
        params.ok_or_else(|| "no seed".to_owned())
    }
}

fn faults(text: &str) -> Result<BTreeSet<Fault>, String> {
    if text == "none" {
        return Ok(BTreeSet::new());
    }
    text.split(',')
        .map(|name| {
            Fault::ALL
                .into_iter()
                .find(|fault| fault.name() == name)
                .ok_or_else(|| format!("no fault is called {name}"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_world_reads_back_from_its_arguments() {
        for seed in 0..50 {
            let mut params = Params::of(seed);
            assert_eq!(params.to_string().parse(), Ok(params.clone()));
            params.devices += 1;
            params.faults.remove(&Fault::Loss);
            assert_eq!(params.to_string().parse(), Ok(params));
        }
        assert!("--seed 1 --faults nonsense".parse::<Params>().is_err());
    }
}
