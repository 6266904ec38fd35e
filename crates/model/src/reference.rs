//! Image references as Docker's users write them, and as registries want them (distribution `reference.ParseNormalizedNamed`).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A normalised reference: registry, repository, and a tag or digest or both.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Reference {
    /// `docker.io`, `localhost:5000`, …
    pub domain: String,
    /// `library/nginx`, `example/echo`, …
    pub path: String,
    pub tag: Option<String>,
    /// `sha256:<64 hex digits>`.
    pub digest: Option<String>,
}

/// Text that names no image, with the words of distribution's parser, which clients print.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidReference {
    #[error("invalid reference format")]
    Format,
    #[error("invalid reference format: repository name ({0}) must be lowercase")]
    NotLowercase(String),
    #[error("invalid repository name ({0}), cannot specify 64-byte hexadecimal strings")]
    IsId(String),
    #[error("repository name must not be more than 255 characters")]
    TooLong,
}

impl Reference {
    /// `docker.io/library/nginx` without tag or digest.
    pub fn name(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// As Docker shows it: without `docker.io/` and `library/`.
    pub fn familiar_name(&self) -> String {
        if self.domain == "docker.io" {
            self.path.strip_prefix("library/").filter(|rest| !rest.contains('/')).unwrap_or(&self.path).to_owned()
        } else {
            self.name()
        }
    }

    /// `nginx:1.25` as Docker shows it, with `:latest` if neither tag nor digest is there.
    pub fn familiar(&self) -> String {
        let name = self.familiar_name();
        match (&self.tag, &self.digest) {
            (Some(tag), Some(digest)) => format!("{name}:{tag}@{digest}"),
            (Some(tag), None) => format!("{name}:{tag}"),
            (None, Some(digest)) => format!("{name}@{digest}"),
            (None, None) => format!("{name}:latest"),
        }
    }

    /// The tag, `latest` if neither tag nor digest is there.
    pub fn tag_or_latest(&self) -> Option<&str> {
        match (&self.tag, &self.digest) {
            (Some(tag), _) => Some(tag),
            (None, Some(_)) => None,
            (None, None) => Some("latest"),
        }
    }
}

impl fmt::Display for Reference {
    /// The whole normalised text, without an implied tag.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

fn is_tag(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_')
        && text.len() <= 128
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

/// `sha256:` and 64 hex digits (or sha384/sha512 with theirs).
pub fn is_digest(text: &str) -> bool {
    let Some((algorithm, hex)) = text.split_once(':') else { return false };
    let length = match algorithm {
        "sha256" => 64,
        "sha384" => 96,
        "sha512" => 128,
        _ => return false,
    };
    hex.len() == length && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// `[a-z0-9]+` joined by `.`, `_`, `__` or dashes.
fn is_path_component(text: &str) -> bool {
    let alnum = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    let (Some(&first), Some(&last)) = (bytes.first(), bytes.last()) else { return false };
    if !alnum(first) || !alnum(last) {
        return false;
    }
    text.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        .all(|separator| matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|b| b == b'-'))
}

fn is_domain(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => (host, Some(port)),
        Some(_) if !text.starts_with('[') => return false,
        _ => (text, None),
    };
    let _ = port;
    if let Some(v6) = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        return v6.bytes().all(|b| b.is_ascii_hexdigit() || b == b':');
    }
    !host.is_empty()
        && host.split('.').all(|label| {
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        })
}

impl FromStr for Reference {
    type Err = InvalidReference;

    fn from_str(text: &str) -> Result<Self, InvalidReference> {
        if text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
            return Err(InvalidReference::IsId(text.to_owned()));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) if is_digest(digest) => (rest, Some(digest.to_owned())),
            Some(_) => return Err(InvalidReference::Format),
            None => (text, None),
        };
        let (rest, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => {
                if !is_tag(tag) {
                    return Err(InvalidReference::Format);
                }
                (name, Some(tag.to_owned()))
            }
            _ => (rest, None),
        };
        let (domain, path) = match rest.split_once('/') {
            Some((first, path))
                if first.contains(['.', ':'])
                    || first == "localhost"
                    || first.chars().any(|c| c.is_ascii_uppercase()) =>
            {
                (first.to_owned(), path.to_owned())
            }
            Some(_) => ("docker.io".to_owned(), rest.to_owned()),
            None => ("docker.io".to_owned(), format!("library/{rest}")),
        };
        let domain = if domain == "index.docker.io" { "docker.io".to_owned() } else { domain };
        if path.chars().any(|c| c.is_ascii_uppercase()) {
            return Err(InvalidReference::NotLowercase(rest.to_owned()));
        }
        if !is_domain(&domain) || !path.split('/').all(is_path_component) {
            return Err(InvalidReference::Format);
        }
        if domain.len() + 1 + path.len() > 255 {
            return Err(InvalidReference::TooLong);
        }
        Ok(Self { domain, path, tag, digest })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, whole: &str, familiar: &str) {
        let r: Reference = text.parse().unwrap();
        assert_eq!((r.to_string().as_str(), r.familiar().as_str()), (whole, familiar));
    }

    #[test]
    fn docker_names_are_normalised() {
        check("nginx", "docker.io/library/nginx", "nginx:latest");
        check("nginx:1.12", "docker.io/library/nginx:1.12", "nginx:1.12");
        check("skep/whoami:latest", "docker.io/skep/whoami:latest", "skep/whoami:latest");
        check(
            "localhost:5000/example/echo:latest",
            "localhost:5000/example/echo:latest",
            "localhost:5000/example/echo:latest",
        );
        check("registry:5000/a/b", "registry:5000/a/b", "registry:5000/a/b:latest");
        check("localhost/x__y-z.w", "localhost/x__y-z.w", "localhost/x__y-z.w:latest");
        let digest = format!("sha256:{}", "a".repeat(64));
        check(
            &format!("nginx:1@{digest}"),
            &format!("docker.io/library/nginx:1@{digest}"),
            &format!("nginx:1@{digest}"),
        );
    }

    #[test]
    fn bad_references_are_told_as_docker_tells_them() {
        let fails = |text: &str| text.parse::<Reference>().unwrap_err().to_string();
        for bad in ["", ":", "a:", "a//b", "-a", "a@sha256:12", "a b", "a..b/c", "x:_-!"] {
            assert_eq!(fails(bad), "invalid reference format", "{bad:?}");
        }
        assert_eq!(
            fails("Nginx"),
            "invalid reference format: repository name (library/Nginx) must be lowercase".replace("library/", "")
        );
        assert!(fails(&"a".repeat(64)).contains("64-byte hexadecimal"));
    }
}
