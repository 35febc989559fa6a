//! The time of day, for what has no clock of its own.

use std::time::{SystemTime, UNIX_EPOCH};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use peerage_model::UnixTime;

/// Now, in whole seconds. A clock before 1970 is 1970.
#[must_use]
pub fn now() -> UnixTime {
    UnixTime(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
}

/// The same as the API server writes it.
#[must_use]
pub fn api_time(at: UnixTime) -> Time {
    let seconds = i64::try_from(at.0).unwrap_or(i64::MAX);
    Time(Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX))
}
