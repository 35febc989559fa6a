//! Names that are safe to put in DNS, because they can only be built by parsing.

use core::fmt;
use core::str::FromStr;

use minicbor::{Decode, Decoder, Encode, Encoder, decode, encode};

/// Longest label, RFC 1035 section 2.3.4.
pub const MAX_LABEL: usize = 63;
/// Longest agent name. `<name>.<namespace>` needs two labels; 127 leaves room for both and for the
/// `.<link>.peer.internal` that local DNS puts behind it within the 253 of RFC 1035.
pub const MAX_AGENT_NAME: usize = 127;

/// A string that is not the name it was given as, and what would be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    /// Nothing, or two dots in a row.
    #[error("a name has an empty part; write letters, digits and hyphens between dots")]
    EmptyLabel,
    /// More than [`MAX_LABEL`] bytes between dots.
    #[error("`{label}` is longer than {MAX_LABEL} characters")]
    LabelTooLong {
        /// The part in question.
        label: String,
    },
    /// A byte other than a lower-case letter, a digit or an inner hyphen.
    #[error("`{label}` is not a DNS label: use a-z, 0-9 and hyphens, starting and ending with a letter or digit")]
    BadLabel {
        /// The part in question.
        label: String,
    },
    /// More than [`MAX_AGENT_NAME`] bytes in all.
    #[error("a name of {length} characters is longer than {MAX_AGENT_NAME}")]
    TooLong {
        /// How long it was.
        length: usize,
    },
}

fn check_label(label: &str) -> Result<(), InvalidName> {
    if label.is_empty() {
        return Err(InvalidName::EmptyLabel);
    }
    if label.len() > MAX_LABEL {
        return Err(InvalidName::LabelTooLong { label: label.chars().take(MAX_LABEL).collect() });
    }
    let bytes = label.as_bytes();
    let inner = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-';
    let edge_is_hyphen = bytes.first() == Some(&b'-') || bytes.last() == Some(&b'-');
    if !bytes.iter().all(inner) || edge_is_hyphen {
        return Err(InvalidName::BadLabel { label: label.to_owned() });
    }
    Ok(())
}

/// One RFC 1123 label, lower case: what a user calls a peer locally (`db`), or a port's name (`mcp`).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Label(String);

/// The name an authority gives an agent: one or more labels, `db-tool-server` or `db-tool-server.tools`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AgentName(String);

impl Label {
    /// The label as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl AgentName {
    /// The whole name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The part before the first dot: what others call the agent unless told otherwise.
    #[must_use]
    pub fn first_label(&self) -> Label {
        let first = self.0.split('.').next().expect("split yields at least one part");
        Label(first.to_owned())
    }
}

impl FromStr for Label {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        check_label(text)?;
        Ok(Self(text.to_owned()))
    }
}

impl FromStr for AgentName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        if text.len() > MAX_AGENT_NAME {
            return Err(InvalidName::TooLong { length: text.len() });
        }
        text.split('.').try_for_each(check_label)?;
        Ok(Self(text.to_owned()))
    }
}

macro_rules! name_traits {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl<C> Encode<C> for $name {
            fn encode<W: encode::Write>(&self, e: &mut Encoder<W>, _: &mut C) -> Result<(), encode::Error<W::Error>> {
                e.str(&self.0)?.ok()
            }
        }

        impl<'b, C> Decode<'b, C> for $name {
            fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, decode::Error> {
                let at = d.position();
                d.str()?.parse().map_err(|e| decode::Error::custom(e).at(at))
            }
        }
    };
}
name_traits!(Label);
name_traits!(AgentName);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kubernetes_style_name_parses_and_keeps_its_text() {
        let name: AgentName = "db-tool-server.tools".parse().expect("two labels are a name");
        assert_eq!(name.as_str(), "db-tool-server.tools");
        assert_eq!(name.first_label().as_str(), "db-tool-server");
    }

    #[test]
    fn names_that_dns_would_not_carry_are_refused() {
        for bad in ["", ".", "a..b", "-a", "a-", "A", "a_b", "a b", "é", "a.", &"x".repeat(64)] {
            assert!(bad.parse::<AgentName>().is_err(), "{bad:?} was accepted");
        }
        let long = vec!["abcdefgh"; 15].join(".");
        assert!(long.parse::<AgentName>().is_err(), "{} characters were accepted", long.len());
    }
}
