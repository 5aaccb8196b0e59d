//! Users with their roles, and the tokens that stand for them: facts in a journal, and the state that follows.
//!
//! A token is `weir_<id>_<secret>`. Its secret has 256 random bits and is shown once; what is kept is an Argon2id hash of
//! it. The id is no secret: it finds the hash, and is what lists and the audit trail name.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use argon2::Argon2;
use argon2::password_hash::{PasswordHash, PasswordHasher, PasswordVerifier, SaltString};
use device::time::Timestamp;
use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::authority::Secret;
use crate::journal::{Journal, JournalError, Line};
use crate::leaf::hex;
use crate::subject::{MAX_NAME, is_name};

/// What tokens begin with; a scanner for leaked secrets finds them by it.
const PREFIX: &str = "weir_";

/// Digits of an id, hexadecimal.
const ID: usize = 16;

/// Digits of a secret, hexadecimal.
const SECRET: usize = 64;

/// What somebody may do. Each role may do what those before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Look at health, metrics, devices, shadows, alerts, pipelines.
    Viewer,
    /// Ask with SQL.
    Analyst,
    /// Repair, backfill and tap pipelines.
    Engineer,
    /// Change what devices are wanted to be, command them, take care of incidents.
    Operator,
    /// Everything: the audit trail, users, certificates.
    Admin,
}

impl Role {
    /// All, from the least.
    pub const ALL: [Self; 5] = [Self::Viewer, Self::Analyst, Self::Engineer, Self::Operator, Self::Admin];

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Analyst => "analyst",
            Self::Engineer => "engineer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }

    /// The role of a name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.as_str() == name)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Fact {
    /// A user is there from now on, or has another role.
    User {
        /// Its name.
        name: String,
        /// What it may do.
        role: Role,
    },
    /// A user is gone, and all its tokens with it.
    Removed {
        /// Its name.
        name: String,
    },
    /// A token was made.
    Token(Token),
    /// A token is not to be accepted any more.
    Revoked {
        /// Which.
        id: String,
    },
}

/// A token without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Token {
    /// Names it.
    pub id: String,
    /// Whom it stands for.
    pub user: String,
    /// What it is for, in the words of whoever made it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// What it may do at most; absent: what its user may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// Until when it counts, ns since the Unix epoch.
    pub expires: i64,
    /// Argon2id of its secret, as a PHC string.
    pub hash: String,
}

/// A token with what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// As it was made.
    pub token: Token,
    /// When.
    pub made: Timestamp,
    /// When it was revoked.
    pub revoked: Option<Timestamp>,
}

/// Who asks, and what it may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// Name of the user.
    pub name: String,
    /// What it may do.
    pub role: Role,
}

/// Why a token is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Refusal {
    /// It is none of ours.
    #[error("this token is not known here; make one with `weir tokens create USER`")]
    Unknown,
    /// Its time is over.
    #[error("this token has expired; make another with `weir tokens create USER`")]
    Expired,
    /// It was revoked.
    #[error("this token was revoked; make another with `weir tokens create USER`")]
    Revoked,
    /// Its user is gone.
    #[error("there is no such user here; add it with `weir users add NAME --role ROLE`")]
    NoUser,
}

impl Refusal {
    /// A word for logs and counters.
    pub fn code(self) -> &'static str {
        match self {
            Self::Unknown => "unknown_token",
            Self::Expired => "expired_token",
            Self::Revoked => "revoked_token",
            Self::NoUser => "no_such_user",
        }
    }
}

/// All that is known.
#[derive(Debug, Default)]
pub struct State {
    users: BTreeMap<String, (Role, Timestamp)>,
    tokens: BTreeMap<String, Held>,
    facts: u64,
}

impl State {
    /// Takes in what happened at a time.
    pub fn apply(&mut self, at: Timestamp, fact: &Fact) {
        self.facts += 1;
        match fact {
            Fact::User { name, role } => {
                self.users.entry(name.clone()).or_insert((*role, at)).0 = *role;
            }
            Fact::Removed { name } => {
                self.users.remove(name);
                // A user of the same name that comes later is another one.
                self.tokens.retain(|_, held| held.token.user != *name);
            }
            Fact::Token(token) => {
                self.tokens.insert(token.id.clone(), Held { token: token.clone(), made: at, revoked: None });
            }
            Fact::Revoked { id } => {
                if let Some(held) = self.tokens.get_mut(id) {
                    held.revoked.get_or_insert(at);
                }
            }
        }
    }

    /// How many facts this state comes from: whoever has seen the same number has seen the same state.
    pub fn facts(&self) -> u64 {
        self.facts
    }

    /// Users by name, with their roles and since when they are there.
    pub fn users(&self) -> impl Iterator<Item = (&str, Role, Timestamp)> {
        self.users.iter().map(|(name, (role, at))| (name.as_str(), *role, *at))
    }

    /// All tokens, by id.
    pub fn tokens(&self) -> impl Iterator<Item = &Held> {
        self.tokens.values()
    }

    /// What a user may do.
    pub fn role(&self, name: &str) -> Option<Role> {
        self.users.get(name).map(|(role, _)| *role)
    }

    /// Whom a token stands for now, if whoever shows it has its secret.
    pub fn principal(&self, id: &str, now: Timestamp) -> Result<Principal, Refusal> {
        let held = self.tokens.get(id).ok_or(Refusal::Unknown)?;
        if held.revoked.is_some() {
            return Err(Refusal::Revoked);
        }
        if now.0 >= held.token.expires {
            return Err(Refusal::Expired);
        }
        let role = self.role(&held.token.user).ok_or(Refusal::NoUser)?;
        let role = held.token.role.map_or(role, |most| most.min(role));
        Ok(Principal { name: held.token.user.clone(), role })
    }

    /// The user that a name stands for, which was shown otherwise than by a token.
    pub fn named(&self, name: &str) -> Result<Principal, Refusal> {
        let role = self.role(name).ok_or(Refusal::NoUser)?;
        Ok(Principal { name: name.to_owned(), role })
    }
}

/// Why a change was not made.
#[derive(Debug, Error)]
pub enum UsersError {
    /// Its file.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The change is not allowed, or there is nothing to change.
    #[error("{0}")]
    Refused(String),
    /// The secret cannot be hashed.
    #[error("cannot hash a token: {0}")]
    Hash(String),
}

/// The users of a data directory. Readers never wait for a disk.
#[derive(Debug)]
pub struct Users {
    journal: Mutex<Journal<Fact>>,
    state: RwLock<State>,
}

impl Users {
    /// Opens the users of a data directory and reads what is known of them.
    pub fn open(data: &Path) -> Result<Self, JournalError> {
        let journal = Mutex::new(Journal::open(&data.join("access").join("users.journal"))?);
        let users = Self { journal, state: RwLock::default() };
        users.read_on()?;
        Ok(users)
    }

    /// Looks at what is known, as of the last read or change.
    pub fn look<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.state.read())
    }

    fn take_in(&self, lines: &[Line<Fact>]) {
        let mut state = self.state.write();
        lines.iter().for_each(|line| state.apply(line.at, &line.fact));
    }

    /// Takes in what other processes have added. Reads a file.
    pub fn read_on(&self) -> Result<(), JournalError> {
        let mut journal = self.journal.lock();
        let lines = journal.read_on()?;
        self.take_in(&lines);
        Ok(())
    }

    fn change(
        &self,
        now: Timestamp,
        decide: impl FnOnce(&State) -> Result<Fact, UsersError>,
    ) -> Result<(), UsersError> {
        let mut journal = self.journal.lock();
        let mut seen = 0;
        let lines = journal.add(now, |others| {
            // Also when the decision is no: the journal has read them.
            self.take_in(others);
            seen = others.len();
            decide(&self.state.read()).map(|fact| vec![fact])
        })?;
        self.take_in(lines.get(seen..).unwrap_or_default());
        Ok(())
    }

    /// Adds a user.
    pub fn add(&self, now: Timestamp, name: &str, role: Role) -> Result<(), UsersError> {
        if !is_name(name) {
            let text = format!("{name:?} is no name of a user: 1 to {MAX_NAME} of A-Z a-z 0-9 . _ -");
            return Err(UsersError::Refused(text));
        }
        self.change(now, |state| match state.role(name) {
            Some(role) => Err(UsersError::Refused(format!(
                "there is a user {name} already, with the role {role}; change it with `weir users role {name} ROLE`"
            ))),
            None => Ok(Fact::User { name: name.to_owned(), role }),
        })
    }

    /// Gives a user another role. Its tokens may do no more than it from now on.
    pub fn set_role(&self, now: Timestamp, name: &str, role: Role) -> Result<(), UsersError> {
        self.change(now, |state| {
            known(state, name)?;
            Ok(Fact::User { name: name.to_owned(), role })
        })
    }

    /// Removes a user with all its tokens.
    pub fn remove(&self, now: Timestamp, name: &str) -> Result<(), UsersError> {
        self.change(now, |state| {
            known(state, name)?;
            Ok(Fact::Removed { name: name.to_owned() })
        })
    }

    /// Makes a token; given is its id and the whole text, which is nowhere kept. `random`: 8 bytes of the id, 32 of the
    /// secret, 16 of the salt, from a source that nobody can guess.
    pub fn create(
        &self,
        now: Timestamp,
        wanted: Wanted,
        random: (&[u8; 8], &[u8; 32], &[u8; 16]),
    ) -> Result<(String, Secret), UsersError> {
        let (id, secret) = (hex(random.0), hex(random.1));
        let hashed = |error: argon2::password_hash::Error| UsersError::Hash(error.to_string());
        let salt = SaltString::encode_b64(random.2).map_err(hashed)?;
        let hash = Argon2::default().hash_password(secret.as_bytes(), &salt).map_err(hashed)?.to_string();
        let text = Secret(format!("{PREFIX}{id}_{secret}"));
        let Wanted { user, name, role, expires } = wanted;
        let token = Token { id: id.clone(), user, name, role, expires: expires.0, hash };
        self.change(now, |state| {
            let may = known(state, &token.user)?;
            if let Some(role) = token.role.filter(|role| *role > may) {
                let text = format!("{} is {may}: a token of it cannot be {role}", token.user);
                return Err(UsersError::Refused(text));
            }
            Ok(Fact::Token(token))
        })?;
        Ok((id, text))
    }

    /// Makes a token worth nothing. Given is whose it was.
    pub fn revoke(&self, now: Timestamp, id: &str) -> Result<String, UsersError> {
        let mut user = String::new();
        self.change(now, |state| match state.tokens.get(id) {
            Some(held) if held.revoked.is_some() => {
                Err(UsersError::Refused(format!("the token {id} is revoked already")))
            }
            Some(held) => {
                user.clone_from(&held.token.user);
                Ok(Fact::Revoked { id: id.to_owned() })
            }
            None => Err(UsersError::Refused(format!("there is no token {id}; see `weir tokens list`"))),
        })?;
        Ok(user)
    }

    /// Whom a token stands for. Computes for tens of milliseconds, with 19 MiB, if its id is known.
    pub fn verify(&self, token: &str, now: Timestamp) -> Result<Principal, Refusal> {
        let (id, secret) = parts(token).ok_or(Refusal::Unknown)?;
        let hash = self.look(|state| {
            state.principal(id, now)?;
            state.tokens.get(id).map(|held| held.token.hash.clone()).ok_or(Refusal::Unknown)
        })?;
        let hash = PasswordHash::new(&hash).map_err(|_| Refusal::Unknown)?;
        Argon2::default().verify_password(secret.as_bytes(), &hash).map_err(|_| Refusal::Unknown)?;
        self.look(|state| state.principal(id, now))
    }
}

/// What a token is to be.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Whom it stands for.
    pub user: String,
    /// What it is for.
    pub name: String,
    /// What it may do at most.
    pub role: Option<Role>,
    /// Until when it counts.
    pub expires: Timestamp,
}

fn known(state: &State, name: &str) -> Result<Role, UsersError> {
    state.role(name).ok_or_else(|| {
        let all: Vec<&str> = state.users.keys().map(String::as_str).collect();
        let there =
            if all.is_empty() { "none; add one with `weir users add NAME --role ROLE`".into() } else { all.join(", ") };
        UsersError::Refused(format!("there is no user {name:?}; there are: {there}"))
    })
}

/// The id and the secret of a text that looks like a token.
pub fn parts(token: &str) -> Option<(&str, &str)> {
    let (id, secret) = token.strip_prefix(PREFIX)?.split_once('_')?;
    let digits =
        |text: &str, len| text.len() == len && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    (digits(id, ID) && digits(secret, SECRET)).then_some((id, secret))
}

#[cfg(test)]
mod tests;
