//! Finding whom a person means by a name.
//!
//! Two authorities may both have a `db`. A name alone then means neither, and the person adds the first digits of the
//! authority's fingerprint: `db@1f3a`.

use std::fmt;
use std::str::FromStr;

use peerage_model::{AgentId, Label};

/// Most letters of what a person may type: an agent name, `@`, a fingerprint.
const MAX_TEXT: usize = 127 + 1 + 64;

/// `NAME` or `NAME@FINGERPRINT-PREFIX`. Not yet known to mean anybody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerRef {
    name: String,
    prefix: Option<String>,
}

/// Text that cannot name a peer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a peer is written NAME or NAME@FINGERPRINT, of which the first digits are enough")]
pub struct InvalidPeerRef;

impl FromStr for PeerRef {
    type Err = InvalidPeerRef;

    fn from_str(text: &str) -> Result<Self, InvalidPeerRef> {
        let (name, prefix) = text.split_once('@').map_or((text, None), |(name, prefix)| (name, Some(prefix)));
        let hex = |prefix: &str| {
            !prefix.is_empty() && prefix.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
        };
        if text.len() > MAX_TEXT || name.parse::<peerage_model::AgentName>().is_err() || !prefix.is_none_or(hex) {
            return Err(InvalidPeerRef);
        }
        Ok(Self { name: name.to_owned(), prefix: prefix.map(str::to_owned) })
    }
}

impl fmt::Display for PeerRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.prefix {
            Some(prefix) => write!(f, "{}@{prefix}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

impl PeerRef {
    /// The name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether an authority may be the one that is meant.
    #[must_use]
    pub fn fits(&self, authority: &peerage_model::Fingerprint) -> bool {
        self.prefix.as_ref().is_none_or(|prefix| authority.to_string().starts_with(prefix.as_str()))
    }

    /// The one among `items` that is meant. An alias is unique here, so it is looked for first.
    ///
    /// # Errors
    /// [`Unmatched`], whose ambiguous case lists what to write instead.
    pub fn find<'a, T>(
        &self,
        items: &'a [T],
        id: impl Fn(&T) -> &AgentId,
        alias: impl Fn(&T) -> Option<&Label>,
    ) -> Result<&'a T, Unmatched> {
        let fits = |item: &&T| self.fits(&id(item).authority);
        let aliased = |item: &&T| alias(item).is_some_and(|alias| alias.as_str() == self.name);
        if let Some(item) = items.iter().filter(fits).find(aliased) {
            return Ok(item);
        }
        let found: Vec<&T> = items.iter().filter(fits).filter(|item| id(item).name.as_str() == self.name).collect();
        match found[..] {
            [item] => Ok(item),
            [] => Err(Unmatched::Unknown),
            _ => Err(Unmatched::Ambiguous { choices: found.into_iter().map(|item| short(id(item))).collect() }),
        }
    }
}

/// Why a name meant nobody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unmatched {
    /// Nobody is called that.
    Unknown,
    /// Several are.
    Ambiguous {
        /// What to write for each of them.
        choices: Vec<String>,
    },
}

/// `db@1f3a9c02`: an agent in few letters. Eight digits tell apart whom a person knows.
#[must_use]
pub fn short(id: &AgentId) -> String {
    format!("{}@{}", id.name, &id.authority.to_string()[..8])
}

#[cfg(test)]
mod tests {
    use super::*;
    use peerage_model::Fingerprint;

    fn id(authority: u8, name: &str) -> AgentId {
        AgentId { authority: Fingerprint([authority; 32]), name: name.parse().expect("a name") }
    }

    fn find<'a>(text: &str, ids: &'a [AgentId]) -> Result<&'a AgentId, Unmatched> {
        text.parse::<PeerRef>().expect("it names a peer").find(ids, |id| id, |_| None)
    }

    #[test]
    fn a_name_that_two_authorities_use_needs_digits_of_the_fingerprint() {
        let ids = [id(0x1f, "db"), id(0x2e, "db"), id(0x2e, "planner")];
        assert_eq!(find("planner", &ids), Ok(&ids[2]));
        let choices = vec!["db@1f1f1f1f".to_owned(), "db@2e2e2e2e".to_owned()];
        assert_eq!(find("db", &ids), Err(Unmatched::Ambiguous { choices }));
        assert_eq!(find("db@2", &ids), Ok(&ids[1]));
        assert_eq!(find("db@3", &ids), Err(Unmatched::Unknown));
    }

    #[test]
    fn an_alias_is_found_before_a_name() {
        let items = [(id(1, "db"), "other"), (id(2, "x"), "db")];
        let labels: Vec<(AgentId, Label)> =
            items.iter().map(|(id, alias)| (id.clone(), alias.parse().expect("a label"))).collect();
        let wanted: PeerRef = "db".parse().expect("it names a peer");
        assert_eq!(wanted.find(&labels, |item| &item.0, |item| Some(&item.1)), Ok(&labels[1]));
    }

    #[test]
    fn what_cannot_be_a_name_is_refused() {
        for text in ["", "@1f", "db@", "db@xyz", "DB", "a b", &"a".repeat(300)] {
            assert_eq!(text.parse::<PeerRef>(), Err(InvalidPeerRef), "{text}");
        }
    }
}
