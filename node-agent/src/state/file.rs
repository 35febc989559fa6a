//! Files as the state needs them: whole or not at all, and for nobody else's eyes.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use super::error::StateError;

/// Largest file that is read. A state with 200 pending requests and 1000 trusts has about 2 MB.
const MAX_FILE: u64 = 16 << 20;
/// Permission bits that let anybody but the owner in.
const OTHERS: u32 = 0o077;
const ROOT: u32 = 0;

/// Writes `bytes` so that a reader, or the next start after a power cut, sees the old file or the new one, whole.
///
/// # Errors
/// [`StateError::Io`], after which the old file is still there.
pub(crate) fn write_atomic(path: &Path, bytes: &[u8]) -> Result<(), StateError> {
    let temporary = path.with_extension("new");
    let write = || -> io::Result<()> {
        // A leftover of a crash may be there with any mode: start from nothing.
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        give_to_owner(&file, path)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        // The rename itself is durable only once the directory is.
        File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
    };
    write().map_err(|cause| io_error("write", path, cause))
}

/// Gives a file that root has made to whose directory it is in. It is closed to all others, and an agent that does not run
/// as root could not start on its own state again.
pub(super) fn give_to_owner(file: &File, path: &Path) -> io::Result<()> {
    let directory = fs::metadata(path.parent().unwrap_or(Path::new(".")))?;
    let (uid, gid) = (directory.uid(), directory.gid());
    if rustix::process::geteuid().is_root() && file.metadata()?.uid() != uid {
        std::os::unix::fs::fchown(file, Some(uid), Some(gid))?;
    }
    Ok(())
}

/// Removes a file of ours, if it is there.
///
/// # Errors
/// [`StateError::Io`].
pub(super) fn remove(path: &Path) -> Result<(), StateError> {
    match fs::remove_file(path) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(io_error("remove", path, cause)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Reads a file of ours; `None` when there is none.
///
/// # Errors
/// [`StateError::Exposed`] when others may read it, [`StateError::Damaged`] when it is far too large.
pub(crate) fn read_private(path: &Path) -> Result<Option<Vec<u8>>, StateError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(cause) => return Err(io_error("read", path, cause)),
    };
    let metadata = file.metadata().map_err(|cause| io_error("read", path, cause))?;
    refuse_exposed(path, metadata.permissions().mode())?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(|cause| io_error("read", path, cause))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(StateError::Damaged { path: path.to_owned(), what: format!("it has more than {MAX_FILE} bytes") });
    }
    Ok(Some(bytes))
}

/// Makes the directory with mode 0700, or checks that an existing one is ours and closed to others. An empty one is closed;
/// one with content is not touched, since it may be anybody's (`--state /tmp`).
///
/// # Errors
/// [`StateError::NotOurs`], [`StateError::Exposed`] or [`StateError::Io`].
pub(super) fn private_directory(path: &Path) -> Result<(), StateError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|cause| io_error("create", path, cause))?;
    let look = |cause| io_error("look into", path, cause);
    let found = fs::metadata(path).map_err(look)?;
    let (mode, owner, us) = (found.permissions().mode(), found.uid(), rustix::process::geteuid().as_raw());
    refuse_anothers(path, owner, us)?;
    if mode & OTHERS == 0 {
        return Ok(());
    }
    if fs::read_dir(path).map_err(look)?.next().is_some() {
        return refuse_exposed(path, mode);
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(|cause| io_error("close", path, cause))
}

/// Root may (`peerage up` on the state of the installed service): what it makes there is given to the owner.
fn refuse_anothers(path: &Path, owner: u32, us: u32) -> Result<(), StateError> {
    match owner == us || us == ROOT {
        true => Ok(()),
        false => Err(StateError::NotOurs { path: path.to_owned(), owner, us }),
    }
}

fn refuse_exposed(path: &Path, mode: u32) -> Result<(), StateError> {
    match mode & OTHERS {
        0 => Ok(()),
        _ => Err(StateError::Exposed { path: path.to_owned(), mode: mode & 0o777 }),
    }
}

pub(super) fn io_error(doing: &'static str, path: &Path, cause: io::Error) -> StateError {
    StateError::Io { doing, path: path.to_owned(), cause }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("it is there").permissions().mode() & 0o777
    }

    #[test]
    fn a_file_is_replaced_whole_and_readable_by_its_owner_only() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("state.json");
        write_atomic(&path, b"one").expect("it writes");
        fs::write(path.with_extension("new"), b"left over from a crash").expect("it writes");
        write_atomic(&path, b"two").expect("it writes");
        assert_eq!(read_private(&path).expect("it reads"), Some(b"two".to_vec()));
        assert_eq!(mode(&path), 0o600);
        assert!(!path.with_extension("new").exists(), "nothing is left lying about");
    }

    #[test]
    fn a_file_that_others_may_read_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("authority.key");
        write_atomic(&path, b"key").expect("it writes");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("it is ours");
        let refused = read_private(&path);
        assert!(matches!(refused, Err(StateError::Exposed { mode: 0o640, .. })), "{refused:?}");
    }

    #[test]
    fn a_file_is_whose_the_directory_is_also_where_root_wrote_it() {
        let dir = tempfile::tempdir().expect("a directory");
        // Who is not root cannot give the directory away; then all is ours.
        let _ = std::os::unix::fs::chown(dir.path(), Some(12_345), Some(12_345));
        let owner = |path: &Path| fs::metadata(path).expect("it is there").uid();
        let path = dir.path().join("state.json");
        write_atomic(&path, b"{}").expect("it writes");
        assert_eq!(owner(&path), owner(dir.path()));
    }

    #[test]
    fn another_users_directory_is_for_root_only() {
        let ours = rustix::process::geteuid().as_raw();
        let refuses =
            |owner, us| matches!(refuse_anothers(Path::new("/x"), owner, us), Err(StateError::NotOurs { .. }));
        assert!(refuses(ours + 1, ours + 2));
        assert!(!refuses(ours + 1, ROOT) && !refuses(ours + 1, ours + 1));
    }

    #[test]
    fn an_empty_directory_is_closed_and_a_used_one_left_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("it is ours");
        private_directory(dir.path()).expect("empty directories are taken over");
        assert_eq!(mode(dir.path()), 0o700);
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("it is ours");
        fs::write(dir.path().join("letter.txt"), b"dear").expect("it writes");
        let refused = private_directory(dir.path());
        assert!(matches!(refused, Err(StateError::Exposed { .. })), "{refused:?}");
        assert_eq!(mode(dir.path()), 0o755);
    }
}
