//! Amounts as Kubernetes writes them, `10m` or `128Mi`: kept as they were written, and compared by what they mean.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An amount of something.
#[derive(Clone, Debug)]
pub struct Quantity {
    text: String,
    /// In units of 10^-9, the smallest that Kubernetes knows.
    nanos: u128,
}

/// Text that is no amount, or an absurd one.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is no quantity as Kubernetes writes them, like 250m or 128Mi")]
pub struct NoQuantity(String);

const KIBI: u128 = 1 << 10;
const UNIT: u128 = 1_000_000_000;
/// Suffixes, and what they stand for in units of 10^-9.
const SUFFIXES: [(&str, u128); 16] = [
    ("", UNIT),
    ("n", 1),
    ("u", 1_000),
    ("m", 1_000_000),
    ("k", UNIT * 1_000),
    ("M", UNIT * 1_000_000),
    ("G", UNIT * 1_000_000_000),
    ("T", UNIT * 1_000_000_000_000),
    ("P", UNIT * 1_000_000_000_000_000),
    ("E", UNIT * 1_000_000_000_000_000_000),
    ("Ki", UNIT * KIBI),
    ("Mi", UNIT * KIBI.pow(2)),
    ("Gi", UNIT * KIBI.pow(3)),
    ("Ti", UNIT * KIBI.pow(4)),
    ("Pi", UNIT * KIBI.pow(5)),
    ("Ei", UNIT * KIBI.pow(6)),
];

impl Quantity {
    /// Whether it is nothing.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        self.nanos == 0
    }

    fn nanos(text: &str) -> Option<u128> {
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, suffix) = text.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let digits = format!("{whole}{fraction}");
        let mantissa = digits.parse::<u128>().ok()?; // empty, or a second point
        let decimals = 10_u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
        let scaled = mantissa.checked_mul(scale(suffix)?)?;
        Some(scaled.div_ceil(decimals)) // as Kubernetes rounds
    }
}

fn scale(suffix: &str) -> Option<u128> {
    if let Some((_, scale)) = SUFFIXES.iter().find(|(known, _)| *known == suffix) {
        return Some(*scale);
    }
    let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
    let power = 10_u128.checked_pow(exponent.unsigned_abs())?;
    if exponent < 0 { UNIT.checked_div(power) } else { UNIT.checked_mul(power) }
}

impl FromStr for Quantity {
    type Err = NoQuantity;

    fn from_str(text: &str) -> Result<Self, NoQuantity> {
        let nanos = Self::nanos(text).ok_or_else(|| NoQuantity(text.to_owned()))?;
        Ok(Self { text: text.to_owned(), nanos })
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

impl Serialize for Quantity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

/// YAML makes a number of `cpu: 1`.
#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Text(String),
    Number(serde_json::Number),
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = match Written::deserialize(deserializer)? {
            Written::Text(text) => text,
            Written::Number(number) => number.to_string(),
        };
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn quantity(text: &str) -> Quantity {
        text.parse().expect("a quantity")
    }

    #[test]
    fn the_same_amount_may_be_written_in_many_ways() {
        for (one, other) in [
            ("100m", "0.1"),
            ("1", "1000m"),
            ("1Gi", "1024Mi"),
            ("1k", "1e3"),
            ("12E", "12e18"),
            ("0.5Ki", "512"),
            ("1e-3", "1m"),
            (".5", "500m"),
        ] {
            assert_eq!(quantity(one), quantity(other), "{one} and {other}");
        }
    }

    #[test]
    fn amounts_are_compared_by_what_they_mean() {
        assert!(quantity("24Mi") < quantity("24.1Mi"));
        assert!(quantity("900m") < quantity("1"));
        assert!(quantity("1M") < quantity("1Mi"));
    }

    #[test]
    fn what_kubernetes_would_not_read_is_refused() {
        for text in ["", "128Mib", "128mi", "1 Gi", "-1", "+1", "1.2.3", "1e", "1e+", "ten", "1e99", "9999999999999Ei"]
        {
            assert!(text.parse::<Quantity>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_number_of_yaml_is_an_amount_and_is_written_as_text() {
        let read = serde_json::from_str::<Vec<Quantity>>(r#"[1, 0.5, "250m"]"#).expect("amounts");
        assert_eq!(serde_json::to_string(&read).expect("JSON"), r#"["1","0.5","250m"]"#);
    }

    proptest! {
        #[test]
        fn whatever_somebody_writes_is_an_amount_or_refused(text in "[0-9.eE+numkMGTPi-]{0,48}") {
            let _ = text.parse::<Quantity>();
        }
    }
}
