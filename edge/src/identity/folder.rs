//! What is kept of an identity: small files, each written whole or not at all.
//!
//! `current.pem` holds the private key and the chain of the certificate that is used, `new.pem` those of the next one (at first the
//! key alone), `ca.pem` whom to trust. Key and certificate stand in one file, so that taking the place of the current one is one
//! rename. Without a folder they are in memory.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::paper::{self, BadPaper};
use super::{Held, IdentityConfig, Kept};
use crate::error::EdgeError;

const CURRENT: &str = "current.pem";
const NEW: &str = "new.pem";
const AUTHORITY: &str = "ca.pem";

/// A private key, which no `{:?}` shows, and the chain of its certificate, if that has come; both PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Pair {
    /// The key.
    pub key: String,
    /// The chain.
    pub chain: Option<String>,
}

impl std::fmt::Debug for Pair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pair").field("certified", &self.chain.is_some()).finish_non_exhaustive()
    }
}

/// The files of one identity, as they are on disk.
#[derive(Debug, Clone)]
pub struct Folder {
    path: PathBuf,
    current: Option<Pair>,
    new: Option<Pair>,
    authority: String,
    /// The claim and its group.
    claim: Option<(Pair, String)>,
}

impl Folder {
    /// Reads what is there. An error says which file is wrong.
    pub fn open(config: &IdentityConfig) -> Result<Self, EdgeError> {
        let path = config.folder.clone();
        std::fs::create_dir_all(&path).map_err(|source| storage("make the folder of the identity", source))?;
        let authority = match read(&path.join(AUTHORITY))? {
            Some(text) => text,
            None => {
                let given = config.authority.as_ref().map(|path| needed(path)).transpose()?;
                given.ok_or_else(|| {
                    let what = path.join(AUTHORITY);
                    EdgeError::Identity(format!("{} is not there, and no other authority is named", what.display()))
                })?
            }
        };
        let claim = match &config.claim {
            Some((certificate, key)) => {
                let chain = needed(certificate)?;
                let group = paper::group(&chain).map_err(|e| wrong(certificate, &e))?;
                Some((Pair { key: needed(key)?, chain: Some(chain) }, group))
            }
            None => None,
        };
        let (current, new) = (pair(&path.join(CURRENT))?, pair(&path.join(NEW))?);
        if let Some(Pair { chain: None, .. }) = &current {
            return Err(EdgeError::Identity(format!("{} holds no certificate", path.join(CURRENT).display())));
        }
        let folder = Self { path, current, new, authority, claim };
        // Looked at once, so that what cannot be used is said now.
        folder.kept()?;
        Ok(folder)
    }

    /// What is kept, in short.
    pub fn kept(&self) -> Result<Kept, EdgeError> {
        let held = |pair: &Option<Pair>, name: &str| -> Result<Option<Held>, EdgeError> {
            let chain = pair.as_ref().and_then(|pair| pair.chain.as_deref());
            chain.map(paper::held).transpose().map_err(|e| wrong(&self.path.join(name), &e))
        };
        let new = match &self.new {
            Some(_) => Some(held(&self.new, NEW)?),
            None => None,
        };
        Ok(Kept { current: held(&self.current, CURRENT)?, new })
    }

    /// Whom to trust, PEM.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// The current key and chain.
    pub fn current(&self) -> Option<&Pair> {
        self.current.as_ref()
    }

    /// Those that are to take its place.
    pub fn new_pair(&self) -> Option<&Pair> {
        self.new.as_ref()
    }

    /// The claim of the device's group.
    pub fn claim(&self) -> Option<&Pair> {
        self.claim.as_ref().map(|(pair, _)| pair)
    }

    /// The group of the claim.
    pub fn group(&self) -> Option<&str> {
        self.claim.as_ref().map(|(_, group)| group.as_str())
    }

    /// Makes a key and keeps it as the new one. Waits for the disk, as all that follow.
    pub fn make_key(&mut self) -> Result<(), EdgeError> {
        let key = paper::new_key().map_err(|e| EdgeError::Identity(format!("cannot make a key: {e}")))?;
        write(&self.path.join(NEW), &key, 0o600)?;
        self.new = Some(Pair { key, chain: None });
        Ok(())
    }

    /// Keeps a certificate beside the new key, and whom to trust. One that is for another key is an error.
    pub fn keep(&mut self, chain: String, bundle: String) -> Result<(), EdgeError> {
        let Some(key) = self.new.as_ref().map(|new| new.key.clone()) else {
            return Err(EdgeError::Identity("a certificate has come that nobody asked for".to_owned()));
        };
        let unusable = |e: BadPaper| EdgeError::Identity(format!("the certificate that has come: {e}"));
        paper::fits(&chain, &key).map_err(unusable)?;
        paper::held(&chain).map_err(unusable)?;
        // Whom to trust comes first: it holds for the current certificate, too.
        self.trust(bundle)?;
        write(&self.path.join(NEW), &text(&key, &chain), 0o600)?;
        self.new = Some(Pair { key, chain: Some(chain) });
        Ok(())
    }

    /// Keeps whom to trust. What holds no authority, or what is no certificate, is an error: the device would be locked out.
    pub fn trust(&mut self, bundle: String) -> Result<(), EdgeError> {
        let unusable = |e: BadPaper| EdgeError::Identity(format!("whom to trust, as it has come: {e}"));
        paper::authorities(&bundle).map_err(unusable)?;
        if bundle != self.authority || !self.path.join(AUTHORITY).exists() {
            write(&self.path.join(AUTHORITY), &bundle, 0o644)?;
            self.authority = bundle;
        }
        Ok(())
    }

    /// Puts the new certificate in the place of the current one.
    pub fn promote(&mut self) -> Result<(), EdgeError> {
        let failed = |source| storage("put the new certificate in place", source);
        std::fs::rename(self.path.join(NEW), self.path.join(CURRENT))
            .and_then(|()| sync(&self.path))
            .map_err(failed)?;
        self.current = self.new.take();
        Ok(())
    }

    /// Forgets the new key and certificate.
    pub fn forget(&mut self) -> Result<(), EdgeError> {
        let removed = match std::fs::remove_file(self.path.join(NEW)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => sync(&self.path),
        };
        removed.map_err(|source| storage("forget the new key", source))?;
        self.new = None;
        Ok(())
    }
}

fn text(key: &str, chain: &str) -> String {
    format!("{key}{chain}")
}

const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----";

/// Reads a key and what follows it.
fn pair(path: &Path) -> Result<Option<Pair>, EdgeError> {
    let Some(text) = read(path)? else { return Ok(None) };
    let (key, chain) = text.split_at(text.find(CERTIFICATE).unwrap_or(text.len()));
    if !key.contains("PRIVATE KEY-----") {
        return Err(EdgeError::Identity(format!(
            "{}: the private key stands first, then the certificates (PEM)",
            path.display()
        )));
    }
    let chain = (!chain.is_empty()).then(|| chain.to_owned());
    if let Some(chain) = &chain {
        paper::fits(chain, key).map_err(|e| wrong(path, &e))?;
    }
    Ok(Some(Pair { key: key.to_owned(), chain }))
}

fn read(path: &Path) -> Result<Option<String>, EdgeError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(EdgeError::Identity(format!("{}: {error}", path.display()))),
    }
}

fn needed(path: &Path) -> Result<String, EdgeError> {
    read(path)?.ok_or_else(|| EdgeError::Identity(format!("{} is not there", path.display())))
}

fn wrong(path: &Path, error: &BadPaper) -> EdgeError {
    EdgeError::Identity(format!("{}: {error}", path.display()))
}

fn storage(doing: &'static str, source: io::Error) -> EdgeError {
    EdgeError::Identity(format!("cannot {doing}: {source}"))
}

/// Writes a file whole or not at all, with these permissions from the beginning; durable when it returns.
fn write(path: &Path, text: &str, mode: u32) -> Result<(), EdgeError> {
    let failed = |source| EdgeError::Identity(format!("{}: {source}", path.display()));
    let fresh = path.with_extension("tmp");
    // One that a crash has left may have other permissions.
    match std::fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(mode);
    }
    let mut file = options.open(&fresh).map_err(failed)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
    std::fs::rename(&fresh, path).map_err(failed)?;
    sync(path.parent().unwrap_or(Path::new("."))).map_err(failed)
}

fn sync(folder: &Path) -> io::Result<()> {
    std::fs::File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    fn config(folder: &Path) -> IdentityConfig {
        std::fs::write(folder.join("given.crt"), "given").unwrap();
        IdentityConfig {
            folder: folder.join("identity"),
            authority: Some(folder.join("given.crt")),
            claim: None,
            server_name: None,
            recovery: None,
        }
    }

    fn authority() -> String {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.self_signed(&key).unwrap().pem()
    }

    fn certificate(key_pem: &str) -> String {
        let key = KeyPair::from_pem(key_pem).unwrap();
        CertificateParams::default().self_signed(&key).unwrap().pem()
    }

    #[test]
    fn each_step_is_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path());
        let mut folder = Folder::open(&config).unwrap();
        assert_eq!((folder.kept().unwrap(), folder.authority()), (Kept::default(), "given"));
        folder.make_key().unwrap();
        let key = folder.new_pair().unwrap().key.clone();
        let again = |folder: &Folder| {
            let read = Folder::open(&config).unwrap();
            assert_eq!((read.current(), read.new_pair()), (folder.current(), folder.new_pair()));
            assert_eq!(read.authority(), folder.authority());
            read.kept().unwrap()
        };
        assert_eq!(again(&folder), Kept { current: None, new: Some(None) });
        let chain = certificate(&key);
        let bundle = authority();
        folder.keep(chain.clone(), bundle.clone()).unwrap();
        let held = paper::held(&chain).unwrap();
        assert_eq!(again(&folder), Kept { current: None, new: Some(Some(held)) });
        assert_eq!(folder.authority(), bundle);
        for wrong in [String::new(), "bundle".into(), chain.clone(), bundle.replace("MII", "MIJ")] {
            assert!(folder.trust(wrong).is_err());
        }
        let both = format!("{bundle}{}", authority());
        folder.trust(both.clone()).unwrap();
        again(&folder);
        assert_eq!(folder.authority(), both);
        folder.promote().unwrap();
        assert_eq!(again(&folder), Kept { current: Some(held), new: None });
        folder.make_key().unwrap();
        assert!(folder.keep(chain, bundle).unwrap_err().to_string().contains("another key"));
        folder.forget().unwrap();
        folder.forget().unwrap();
        assert_eq!(again(&folder), Kept { current: Some(held), new: None });
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = std::fs::metadata(dir.path().join("identity/current.pem")).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        assert!(!format!("{folder:?}").contains("PRIVATE"));
    }

    #[test]
    fn a_file_that_is_wrong_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path());
        let error = |config: &IdentityConfig| Folder::open(config).unwrap_err().to_string();
        let without = IdentityConfig { authority: None, ..config.clone() };
        assert!(error(&without).contains("ca.pem is not there"), "{}", error(&without));
        let lost =
            IdentityConfig { claim: Some((dir.path().join("c.crt"), dir.path().join("c.key"))), ..config.clone() };
        assert!(error(&lost).contains("c.crt is not there"));
        let key = paper::new_key().unwrap();
        std::fs::write(dir.path().join("c.crt"), certificate(&key)).unwrap();
        assert!(error(&lost).contains("not the claim"), "{}", error(&lost));
        let current = config.folder.join("current.pem");
        std::fs::write(&current, certificate(&key)).unwrap();
        assert!(error(&config).contains("private key stands first"), "{}", error(&config));
        std::fs::write(&current, &key).unwrap();
        assert!(error(&config).contains("holds no certificate"), "{}", error(&config));
        let other = paper::new_key().unwrap();
        std::fs::write(&current, format!("{key}{}", certificate(&other))).unwrap();
        assert!(error(&config).contains("another key"), "{}", error(&config));
    }
}
