//! Where an agent's state is, and that only one daemon has it.

use std::env;
use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use peerage_model::id::sha256;

use super::error::StateError;
use super::file::{give_to_owner, io_error, private_directory};

/// The environment variable that stands for `--state`.
pub const STATE_VARIABLE: &str = "PEERAGE_STATE";
/// Longest path of a Unix socket (`sun_path` has 108 bytes on Linux, the last one is zero).
pub(crate) const MAX_SOCKET_PATH: usize = 107;

/// Where things are; finding a place touches nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place(PathBuf);

/// A place that this process holds alone.
#[derive(Debug)]
pub struct Home {
    place: Place,
    /// The lock lasts as long as the file is open, whatever way the process ends.
    _lock: File,
}

impl Place {
    /// The place for `--state` (clap also reads [`STATE_VARIABLE`] into it), or the default: `/var/lib/peerage` for
    /// root, else `$XDG_STATE_HOME/peerage` or `~/.local/state/peerage`.
    ///
    /// # Errors
    /// [`StateError::NoPlace`] for a user without a home.
    pub fn find(flag: Option<&Path>) -> Result<Self, StateError> {
        if let Some(path) = flag.filter(|path| !path.as_os_str().is_empty()) {
            return Ok(Self(path.to_owned()));
        }
        let variable = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        if let Some(path) = variable(STATE_VARIABLE) {
            return Ok(Self(path));
        }
        if rustix::process::geteuid().is_root() {
            return Ok(Self("/var/lib/peerage".into()));
        }
        // The XDG specification says to ignore relative paths.
        let xdg = variable("XDG_STATE_HOME").filter(|path| path.is_absolute());
        let base = xdg.or_else(|| variable("HOME").map(|home| home.join(".local/state")));
        base.map(|base| Self(base.join("peerage"))).ok_or(StateError::NoPlace)
    }

    /// The directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.0
    }

    /// A file in it.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The control socket: in the directory, or, where that path is too long for a socket, in `$XDG_RUNTIME_DIR`
    /// under a name that the directory decides.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        let path = self.file("control.sock");
        let runtime = env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
        match runtime {
            Some(runtime) if path.as_os_str().len() > MAX_SOCKET_PATH => {
                let hash = sha256(&[self.0.as_os_str().as_encoded_bytes()]);
                runtime.join(format!("peerage-{}.sock", data_encoding::HEXLOWER.encode(&hash[..8])))
            }
            Some(_) | None => path,
        }
    }

    /// Makes the directory where it is missing, for its owner's eyes only.
    ///
    /// # Errors
    /// As [`Self::take`], but for a second process.
    pub fn prepare(&self) -> Result<(), StateError> {
        private_directory(&self.0)
    }

    /// Opens a file for adding to its end, for nobody else's eyes.
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub fn append(&self, name: &str) -> Result<File, StateError> {
        let path = self.file(name);
        let open = || {
            let file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(&path)?;
            give_to_owner(&file, &path)?;
            std::io::Result::Ok(file)
        };
        open().map_err(|cause| io_error("write", &path, cause))
    }

    /// Makes the directory where it is missing, and takes it for this process alone.
    ///
    /// # Errors
    /// [`StateError::InUse`] when another process has it, [`StateError::Exposed`] when others may look into it,
    /// [`StateError::NotOurs`] when it is another user's.
    pub fn take(self) -> Result<Home, StateError> {
        self.prepare()?;
        let path = self.file("lock");
        let failed = |cause| io_error("lock", &path, cause);
        let options = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
        let lock = options.map_err(failed)?;
        give_to_owner(&lock, &path).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => Ok(Home { place: self, _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(StateError::InUse { path: self.0 }),
            Err(TryLockError::Error(cause)) => Err(failed(cause)),
        }
    }
}

impl Home {
    /// Where it is.
    #[must_use]
    pub fn place(&self) -> &Place {
        &self.place
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.place.file(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_daemon_on_one_state_is_refused_until_the_first_ends() {
        let dir = tempfile::tempdir().expect("a directory");
        let place = Place::find(Some(dir.path())).expect("a flag is a place");
        let first = place.clone().take().expect("nobody else is here");
        let second = place.clone().take();
        assert!(matches!(second, Err(StateError::InUse { .. })), "{second:?}");
        drop(first);
        place.take().expect("the lock went with its holder");
    }

    #[test]
    fn an_empty_place_is_as_none() {
        assert_eq!(Place::find(Some(Path::new(""))).ok(), Place::find(None).ok());
    }

    #[test]
    fn the_socket_lies_in_the_state_directory() {
        let place = Place::find(Some(Path::new("/run/a"))).expect("a flag is a place");
        assert_eq!(place.socket(), Path::new("/run/a/control.sock"));
    }
}
