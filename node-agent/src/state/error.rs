//! What can be wrong with an agent's state on disk, and what its owner does about it.

use std::io;
use std::path::PathBuf;

use peerage_model::Fingerprint;

/// Why the state was not opened or not written. Nothing is ever repaired by forgetting.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The system refused.
    #[error("cannot {doing} `{}`", path.display())]
    Io {
        /// What we were doing (`read`, `write`, `lock`).
        doing: &'static str,
        /// To which file or directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
    /// Neither a flag nor the environment says where the state is, and there is no home directory.
    #[error("no place for the agent's state is known")]
    NoPlace,
    /// A second daemon on one state would undo what the first writes.
    #[error("another agent is running on the state in `{}`", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// Keys that others can read are no keys.
    #[error("`{}` is open to other users (mode {mode:03o})", path.display())]
    Exposed {
        /// The file or directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Files that we make there would be ours, and its owner could not read them.
    #[error("`{}` belongs to user {owner}, and this process runs as user {us}", path.display())]
    NotOurs {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Who we are.
        us: u32,
    },
    /// A file is not what we wrote.
    #[error("`{}` is damaged: {what}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and where.
        what: String,
    },
    /// A later version of Peerage wrote it.
    #[error("`{}` has format {found}; this version reads up to {known}", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u64,
        /// The last format we know.
        known: u64,
    },
    /// A file that must be there is not.
    #[error("`{}` is missing, although this state belongs to authority {authority:?}", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// Whose state it is.
        authority: Fingerprint,
    },
    /// The key is another authority's than the one this state was made by.
    #[error("`{}` is the key of authority {found:?}, but this state belongs to {expected:?}", path.display())]
    WrongKey {
        /// The key file.
        path: PathBuf,
        /// Whose key it is.
        found: Fingerprint,
        /// Whose it has to be.
        expected: Fingerprint,
    },
}

impl StateError {
    /// What to do about it, in a sentence for the person at the keyboard.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Io { path, .. } => {
                format!(
                    "check who owns `{}` and whether its disk is full, or choose another place with --state",
                    path.display()
                )
            }
            Self::NoPlace => "name a directory with --state or PEERAGE_STATE".into(),
            Self::InUse { .. } => "stop it with `peerage down`, or give this one its own directory with --state".into(),
            Self::Exposed { path, .. } => {
                format!("run `chmod go-rwx {}`, or choose another place with --state", path.display())
            }
            Self::NotOurs { owner, .. } => {
                format!("run it as that user (`sudo -u '#{owner}' …`) or as root, or choose another place with --state")
            }
            Self::Damaged { path, .. } if path.ends_with(super::INVITES) => {
                format!("remove `{}`: tickets that are open end with it, and nothing else does", path.display())
            }
            Self::Damaged { path, .. } | Self::Missing { path, .. } => format!(
                "put `{}` back from a backup; to give this identity up and start anew, move the whole directory away (every peer must then be asked again)",
                path.display()
            ),
            Self::Newer { .. } => "install a newer peerage, or choose another place with --state".into(),
            Self::WrongKey { path, .. } => {
                format!(
                    "put the right key back at `{}`; keys of two agents must not be mixed in one directory",
                    path.display()
                )
            }
        }
    }
}
