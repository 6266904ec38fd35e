//! The API version a path names, and what is said of one that is not served.

use std::fmt;

use crate::ConvertError;

/// `1.51`, as in `/v1.51/info`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ApiVersion {
    pub major: u16,
    pub minor: u16,
}

impl ApiVersion {
    pub const fn new(major: u16, minor: u16) -> Self {
        Self { major, minor }
    }

    /// Parses `1.51`.
    pub fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.split_once('.')?;
        let digits = |t: &str| (!t.is_empty() && t.bytes().all(|b| b.is_ascii_digit())).then(|| t.parse().ok())?;
        Some(Self::new(digits(major)?, digits(minor)?))
    }

    /// Refuses what is older or newer than what is served, in moby's words.
    pub fn check(self) -> Result<Self, ConvertError> {
        if self < MINIMUM {
            return ConvertError::invalid(format!(
                "client version {self} is too old. Minimum supported API version is {MINIMUM}, please upgrade your client to a newer version"
            ));
        }
        if self > NEWEST {
            return ConvertError::invalid(format!(
                "client version {self} is too new. Maximum supported API version is {NEWEST}"
            ));
        }
        Ok(self)
    }
}

impl fmt::Display for ApiVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// What a path without a version gets.
pub const NEWEST: ApiVersion = ApiVersion::new(1, 51);
pub const MINIMUM: ApiVersion = ApiVersion::new(1, 24);

/// Splits `/v1.43/info` into its version and `/info`. A path without one has none; `None` inside means malformed.
pub fn split_path(path: &str) -> (Option<ApiVersion>, &str) {
    let Some(rest) = path.strip_prefix("/v") else { return (None, path) };
    let end = rest.find('/').unwrap_or(rest.len());
    match ApiVersion::parse(&rest[..end]) {
        Some(version) => (Some(version), if end == rest.len() { "/" } else { &rest[end..] }),
        None => (None, path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_with_and_without_a_version() {
        assert_eq!(split_path("/v1.43/info"), (Some(ApiVersion::new(1, 43)), "/info"));
        assert_eq!(split_path("/volumes"), (None, "/volumes"));
        assert_eq!(split_path("/version"), (None, "/version"));
        assert_eq!(split_path("/_ping"), (None, "/_ping"));
        assert_eq!(split_path("/v1.24/"), (Some(ApiVersion::new(1, 24)), "/"));
    }

    #[test]
    fn refusals_use_mobys_words() {
        assert_eq!(
            ApiVersion::new(1, 60).check().unwrap_err().to_string(),
            "client version 1.60 is too new. Maximum supported API version is 1.51"
        );
        assert_eq!(
            ApiVersion::new(1, 12).check().unwrap_err().to_string(),
            "client version 1.12 is too old. Minimum supported API version is 1.24, please upgrade your client to a newer version"
        );
        assert!(ApiVersion::new(1, 24).check().is_ok() && ApiVersion::new(1, 51).check().is_ok());
    }
}
