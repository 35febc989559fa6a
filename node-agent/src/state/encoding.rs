//! How ids, names and times look in `state.json`: as the text that people see everywhere else.

/// For any type that prints itself and reads that back.
pub mod text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::{Deserialize, Deserializer, Serializer, de};

    /// For `#[serde(with)]`.
    ///
    /// # Errors
    /// Only those of the writer.
    pub fn serialize<T: Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    /// For `#[serde(with)]`.
    ///
    /// # Errors
    /// When the text is not one of these.
    pub fn deserialize<'de, T: FromStr<Err: Display>, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// As [`text`], where there may be none.
pub mod optional_text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::{Deserialize, Deserializer, Serializer, de};

    /// For `#[serde(with)]`.
    ///
    /// # Errors
    /// Only those of the writer.
    pub fn serialize<T: Display, S: Serializer>(value: &Option<T>, serializer: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => serializer.collect_str(value),
            None => serializer.serialize_none(),
        }
    }

    /// For `#[serde(with)]`.
    ///
    /// # Errors
    /// When the text is not one of these.
    pub fn deserialize<'de, T: FromStr<Err: Display>, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<T>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        text.map(|text| text.parse().map_err(de::Error::custom)).transpose()
    }
}

/// As [`text`], several.
pub mod texts {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::{Deserialize, Deserializer, Serializer, de};

    /// For `#[serde(with)]`.
    ///
    /// # Errors
    /// Only those of the writer.
    pub fn serialize<T: Display, S: Serializer>(values: &[T], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(values.iter().map(ToString::to_string))
    }

    /// For `#[serde(with)]`.
    ///
    /// # Errors
    /// When a text is not one of these.
    pub fn deserialize<'de, T: FromStr<Err: Display>, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<T>, D::Error> {
        let texts = Vec::<String>::deserialize(deserializer)?;
        texts.iter().map(|text| text.parse().map_err(de::Error::custom)).collect()
    }
}

/// A point in time, RFC 3339.
pub mod time {
    use peerage_model::UnixTime;
    use serde::{Deserialize, Deserializer, Serializer, de};

    use crate::state::time::{parse_rfc3339, rfc3339};

    /// For `#[serde(with)]`.
    ///
    /// # Errors
    /// Only those of the writer.
    pub fn serialize<S: Serializer>(time: &UnixTime, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&rfc3339(*time))
    }

    /// For `#[serde(with)]`.
    ///
    /// # Errors
    /// When the text is not a time.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<UnixTime, D::Error> {
        parse_rfc3339(&String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

/// As [`time`], where there may be none.
pub mod optional_time {
    use peerage_model::UnixTime;
    use serde::{Deserialize, Deserializer, Serializer, de};

    use crate::state::time::{parse_rfc3339, rfc3339};

    /// For `#[serde(with)]`.
    ///
    /// # Errors
    /// Only those of the writer.
    pub fn serialize<S: Serializer>(time: &Option<UnixTime>, serializer: S) -> Result<S::Ok, S::Error> {
        match time {
            Some(time) => serializer.serialize_str(&rfc3339(*time)),
            None => serializer.serialize_none(),
        }
    }

    /// For `#[serde(with)]`.
    ///
    /// # Errors
    /// When the text is not a time.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<UnixTime>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        text.map(|text| parse_rfc3339(&text).map_err(de::Error::custom)).transpose()
    }
}

/// Signed authority records, in base64. Their signatures are checked at each load, their end where they are used.
pub mod records {
    use data_encoding::BASE64URL_NOPAD;
    use peerage_model::{AuthorityRecord, UnixTime};
    use serde::{Deserialize, Deserializer, Serializer, de};

    /// For `#[serde(with)]`.
    ///
    /// # Errors
    /// Only those of the writer.
    pub fn serialize<S: Serializer>(records: &[AuthorityRecord], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(records.iter().map(|record| BASE64URL_NOPAD.encode(record.as_bytes())))
    }

    /// For `#[serde(with)]`.
    ///
    /// # Errors
    /// When one is not base64 or not signed by its root.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<AuthorityRecord>, D::Error> {
        let texts = Vec::<String>::deserialize(deserializer)?;
        let decode = |text: &String| {
            let bytes = BASE64URL_NOPAD.decode(text.as_bytes()).map_err(de::Error::custom)?;
            // The epoch as "now": a record that has ended must not make the whole state unreadable.
            AuthorityRecord::verify(&bytes, UnixTime(0)).map_err(de::Error::custom)
        };
        texts.iter().map(decode).collect()
    }
}
