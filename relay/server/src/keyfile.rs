//! The relay's key on disk: 52 characters of base32 and a line end, mode 0600.
//!
//! The key is the relay's identity in everybody's relay list, so a half-written file must never replace it and two
//! relays that start at once must end with one key: a new key is written beside, synced, and then linked to its name,
//! which fails if the name is taken. A relay holds a lock on its file as long as it runs: two relays with one key would be
//! one relay at two places, and each would miss what came to the other.

use std::env;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use aws_lc_rs::rand;
use data_encoding::BASE32_NOPAD;
use peerage_model::AgreementSecret;
use zeroize::Zeroizing;

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// Not readable.
    #[error("cannot read the relay's key from {}", path.display())]
    Read {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// Not a key.
    #[error("{} is not a relay key; if it was damaged, restore it, since agents know the relay by it", path.display())]
    Malformed {
        /// Where.
        path: PathBuf,
    },
    /// Not writable.
    #[error("cannot write a new relay key to {}", path.display())]
    Write {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// Of another relay that runs.
    #[error("another relay that runs here has the key in {}; give this one its own --key-file", path.display())]
    InUse {
        /// Where.
        path: PathBuf,
    },
    /// Nobody said where, and this user has no home.
    #[error("this user has no home directory to keep the relay's key in; give --key-file")]
    NoPlace,
    /// The operating system gave no random bytes.
    #[error("the operating system gave no random bytes")]
    Random,
}

/// A relay's key, which nobody else uses as long as the lock lives.
#[derive(Debug)]
pub(crate) struct KeyFile {
    pub(crate) key: AgreementSecret,
    pub(crate) lock: File,
}

/// What the key's file is called where nobody says it.
const NAME: &str = "relay.key";

/// Where the key is in a state directory, which is made if it is not there. The folder of a file that somebody named is not: a slip
/// of the pen must not become a relay that nobody knows.
///
/// # Errors
/// [`KeyFileError::Write`].
pub fn in_folder(folder: &Path) -> Result<PathBuf, KeyFileError> {
    let path = folder.join(NAME);
    let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(|cause| KeyFileError::Write { path: path.clone(), cause })?;
    Ok(path)
}

/// Where the key is if nobody says it: in the directory that systemd gives a unit (`StateDirectory=`), `/var/lib/peerage`
/// of root, or `$XDG_STATE_HOME/peerage` or `~/.local/state/peerage`. A key that lies in the
/// current directory goes before these.
pub(crate) fn default_path() -> Result<PathBuf, KeyFileError> {
    if Path::new(NAME).exists() {
        return Ok(NAME.into());
    }
    // The XDG specification says to ignore relative paths, and systemd gives absolute ones, with colons between several.
    let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let by_systemd = env::var("STATE_DIRECTORY").ok().and_then(|all| all.split(':').next().map(PathBuf::from));
    let folder = match by_systemd.filter(|path| path.is_absolute()) {
        Some(folder) => folder,
        None if rustix::process::geteuid().is_root() => "/var/lib/peerage".into(),
        None => {
            let base = absolute("XDG_STATE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".local/state")));
            base.ok_or(KeyFileError::NoPlace)?.join("peerage")
        }
    };
    in_folder(&folder)
}

/// Reads the key, or makes one if there is none, and takes it for this process.
pub(crate) fn open(path: &Path) -> Result<KeyFile, KeyFileError> {
    let key = load_or_create(path)?;
    let unreadable = |cause| KeyFileError::Read { path: path.to_owned(), cause };
    let lock = File::open(path).map_err(unreadable)?;
    match lock.try_lock() {
        Ok(()) => Ok(KeyFile { key, lock }),
        Err(TryLockError::WouldBlock) => Err(KeyFileError::InUse { path: path.to_owned() }),
        // Some file systems have no locks; a relay must start there, too.
        Err(TryLockError::Error(error)) => {
            tracing::warn!(path = %path.display(), %error, "the relay's key cannot be locked: let no second relay use it");
            Ok(KeyFile { key, lock })
        }
    }
}

fn load_or_create(path: &Path) -> Result<AgreementSecret, KeyFileError> {
    match load(path) {
        Err(KeyFileError::Read { cause, .. }) if cause.kind() == io::ErrorKind::NotFound => {
            create(path)?;
            load(path)
        }
        loaded => loaded,
    }
}

/// 32 random bytes.
pub(crate) fn random() -> Result<Zeroizing<[u8; 32]>, KeyFileError> {
    let mut bytes = Zeroizing::new([0; 32]);
    rand::fill(&mut bytes[..]).map_err(|_| KeyFileError::Random)?;
    Ok(bytes)
}

fn load(path: &Path) -> Result<AgreementSecret, KeyFileError> {
    let unreadable = |cause| KeyFileError::Read { path: path.to_owned(), cause };
    let file = File::open(path).map_err(unreadable)?;
    let mode = file.metadata().map_err(unreadable)?.permissions().mode();
    if mode & 0o007 != 0 {
        tracing::warn!(path = %path.display(), mode = format!("{:o}", mode & 0o777), "other users can read the relay's key");
    }
    let mut text = Zeroizing::new(String::new());
    file.take(256).read_to_string(&mut text).map_err(unreadable)?;
    let key = BASE32_NOPAD.decode(text.trim().to_ascii_uppercase().as_bytes()).ok();
    let key = key.and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
    key.map(AgreementSecret::from_bytes).ok_or(KeyFileError::Malformed { path: path.to_owned() })
}

/// Makes a key; leaves one that appeared meanwhile.
fn create(path: &Path) -> Result<(), KeyFileError> {
    let key = random()?;
    let text = Zeroizing::new(BASE32_NOPAD.encode(&key[..]).to_ascii_lowercase() + "\n");
    let beside = path.with_extension(format!("new-{}", std::process::id()));
    let written = write_and_link(&text, &beside, path);
    // Nothing to do about a failure: the file is ours and holds no key that is in use.
    let _ = fs::remove_file(&beside);
    written.map_err(|cause| KeyFileError::Write { path: path.to_owned(), cause })
}

fn write_and_link(text: &str, beside: &Path, path: &Path) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(beside)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    match fs::hard_link(beside, path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        linked => linked,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_and_readable_by_its_owner_only() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("relay.key");
        let made = load_or_create(&path).expect("a key is made");
        let again = load_or_create(&path).expect("and read");
        assert_eq!(made.expose(), again.expose());
        let mode = fs::metadata(&path).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 1, "nothing is left beside it");
    }

    #[test]
    fn a_state_directory_is_made_and_is_its_owners() {
        let folder = tempfile::tempdir().expect("a folder");
        let state = folder.path().join("state/peerage");
        open(&in_folder(&state).expect("the folder is made")).expect("a key is made");
        let mode = fs::metadata(&state).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
    }

    #[test]
    fn two_relays_do_not_run_with_one_key() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("relay.key");
        let first = open(&path).expect("a key is made");
        assert!(matches!(open(&path), Err(KeyFileError::InUse { .. })));
        drop(first);
        open(&path).expect("the first has ended");
    }

    #[test]
    fn a_damaged_key_file_is_an_error_and_is_left_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("relay.key");
        fs::write(&path, "not a key").expect("written");
        assert!(matches!(load_or_create(&path), Err(KeyFileError::Malformed { .. })));
        assert_eq!(fs::read_to_string(&path).expect("still there"), "not a key");
    }

    #[test]
    fn a_folder_that_does_not_exist_is_an_error() {
        let folder = tempfile::tempdir().expect("a folder");
        let error = load_or_create(&folder.path().join("none/relay.key"));
        assert!(matches!(error, Err(KeyFileError::Write { .. })), "{error:?}");
    }
}
