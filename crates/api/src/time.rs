//! Times and durations as Go writes them: RFC 3339 with nanoseconds, and plain nanoseconds.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use skep_model::Timestamp;

use crate::ConvertError;

/// A `time.Time`; zero is year 1, as Go prints it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct GoTime(pub Timestamp);

impl From<Timestamp> for GoTime {
    fn from(t: Timestamp) -> Self {
        Self(t)
    }
}

impl Serialize for GoTime {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for GoTime {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        if text.is_empty() || text.starts_with("0001-01-01T") {
            return Ok(Self::default());
        }
        Timestamp::parse_rfc3339(&text)
            .map(Self)
            .ok_or_else(|| serde::de::Error::custom(format!("parsing time {text:?} as RFC 3339")))
    }
}

/// Nanoseconds of a duration, saturating where Go's `int64` ends.
pub fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

/// A duration from a request; `what` names it in the refusal of a negative one.
pub fn duration(nanos: i64, what: &str) -> Result<Duration, ConvertError> {
    u64::try_from(nanos).map(Duration::from_nanos).map_err(|_| {
        ConvertError::Invalid(format!("rpc error: code = InvalidArgument desc = TaskSpec: {what} cannot be negative"))
    })
}

/// `since` and `until` of logs and events: Unix seconds with an optional fraction, RFC 3339, or a Go duration meaning that
/// long before `now`. Empty and `0` are "not given".
pub fn parse_moment(text: &str, now: Timestamp) -> Result<Option<Timestamp>, ConvertError> {
    if text.is_empty() || text == "0" {
        return Ok(None);
    }
    if let Some(t) = Timestamp::parse_rfc3339(text) {
        return Ok(Some(t));
    }
    if let Some(t) = parse_unix(text) {
        return Ok(Some(t));
    }
    if let Some(d) = parse_go_duration(text) {
        return Ok(Some(Timestamp(now.0.saturating_sub(d))));
    }
    ConvertError::invalid(format!("failed to parse value as time or duration: {text:?}"))
}

fn parse_unix(text: &str) -> Option<Timestamp> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let secs: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let nanos: i64 = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
    Some(Timestamp(secs.checked_mul(1_000_000_000)?.checked_add(nanos)?))
}

pub use skep_model::time::parse_go_duration;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_durations() {
        for (text, want) in [("1h2m3.5s", 3_723_500_000_000), ("10ms", 10_000_000), ("-1s", -1_000_000_000), ("0", 0)] {
            assert_eq!(parse_go_duration(text), Some(want), "{text}");
        }
        for bad in ["", "1", "h", "1x", "1.2.3s"] {
            assert_eq!(parse_go_duration(bad), None, "{bad}");
        }
    }

    #[test]
    fn moments_in_every_form_clients_send() {
        let now = Timestamp::from_secs(1_000_000);
        let at = |t: &str| parse_moment(t, now).unwrap();
        assert_eq!(at(""), None);
        assert_eq!(at("1700000000.000000005"), Some(Timestamp(1_700_000_000_000_000_005)));
        assert_eq!(at("2017-07-14T02:40:00Z"), Some(Timestamp::from_secs(1_500_000_000)));
        assert_eq!(at("10m"), Some(Timestamp::from_secs(1_000_000 - 600)));
        assert!(parse_moment("yesterday", now).is_err());
    }

    #[test]
    fn zero_time_is_year_one_both_ways() {
        assert_eq!(serde_json::to_string(&GoTime::default()).unwrap(), r#""0001-01-01T00:00:00Z""#);
        assert_eq!(serde_json::from_str::<GoTime>(r#""0001-01-01T00:00:00Z""#).unwrap(), GoTime::default());
    }
}
