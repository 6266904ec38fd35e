//! What `--log-opt` may say, and what comes of it.
//!
//! As moby 20.10 does it, in its words: names, and what all drivers share, are checked when a container is created; values
//! when it starts. Every option is carried out or refused; `mode=non-blocking` says of a file what it is anyhow: written at
//! the daemon's own pace.

use std::collections::BTreeMap;

use skep_model::container::LogConfig;

use super::journald::Journald;
use super::remote::{Address, Format, Target};
use super::syslog::{self, Syslog};
use super::{Rotation, tag};
use crate::container::ContainerRecord;
use crate::error::{EngineError, Result};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Driver {
    JsonFile,
    Local,
    Syslog,
    Journald,
    None,
}

/// What all drivers take (moby `builtInLogOpts`); those of the cache mean something only to drivers that keep no log.
const SHARED: [&str; 6] =
    ["mode", "max-buffer-size", "cache-disabled", "cache-max-size", "cache-max-file", "cache-compress"];
const FILE: [&str; 3] = ["max-size", "max-file", "compress"];
/// What becomes attributes of every line.
const ATTRIBUTES: [&str; 5] = ["labels", "labels-regex", "env", "env-regex", "tag"];
const SYSLOG: [&str; 3] = ["syslog-address", "syslog-facility", "syslog-format"];
/// Docker has them.
const SYSLOG_TLS: [&str; 4] = ["syslog-tls-ca-cert", "syslog-tls-cert", "syslog-tls-key", "syslog-tls-skip-verify"];
/// moby `defaultRingMaxSize`.
const BUFFER_BYTES: usize = 1_000_000;

impl Driver {
    fn named(name: &str) -> Result<Self> {
        match name {
            "" | "json-file" => Ok(Self::JsonFile),
            "local" => Ok(Self::Local),
            "syslog" => Ok(Self::Syslog),
            "journald" => Ok(Self::Journald),
            "none" => Ok(Self::None),
            other => Err(EngineError::Invalid(format!(
                "error looking up logging plugin {other}: plugin {other:?} not found"
            ))),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::JsonFile => "json-file",
            Self::Local => "local",
            Self::Syslog => "syslog",
            Self::Journald => "journald",
            Self::None => "none",
        }
    }

    fn takes(self, option: &str) -> bool {
        match self {
            Self::JsonFile => FILE.contains(&option) || ATTRIBUTES.contains(&option),
            Self::Local => FILE.contains(&option),
            Self::Syslog => SYSLOG.contains(&option) || ATTRIBUTES.contains(&option),
            Self::Journald => ATTRIBUTES.contains(&option),
            Self::None => true,
        }
    }
}

/// Checks what can be said before there is a container (moby `ValidateLogOpts`).
///
/// # Errors
///
/// A driver that is not there, an option it does not know, a mode or buffer that makes no sense.
pub(crate) fn check(config: &LogConfig) -> Result<()> {
    let options = &config.config;
    if config.driver == "none" {
        return Ok(());
    }
    let invalid = |text: String| Err(EngineError::Invalid(text));
    let mode = options.get("mode").map_or("", String::as_str);
    if !matches!(mode, "" | "blocking" | "non-blocking") {
        return invalid(format!("logger: logging mode not supported: {mode}"));
    }
    if let Some(size) = options.get("max-buffer-size") {
        if mode != "non-blocking" {
            return invalid("logger: max-buffer-size option is only supported with 'mode=non-blocking'".to_owned());
        }
        if let Err(error) = parse_size(size, 1024.0) {
            return invalid(format!("error parsing option max-buffer-size: {error}"));
        }
    }
    let driver = Driver::named(&config.driver)?;
    if driver == Driver::Syslog
        && (options.keys().any(|key| SYSLOG_TLS.contains(&key.as_str()))
            || options.get("syslog-address").is_some_and(|address| address.starts_with("tcp+tls://")))
    {
        let text = "syslog over TLS is not supported yet: use tcp, udp, unix or unixgram";
        return Err(EngineError::NotImplemented(text.to_owned()));
    }
    if let Some(unknown) = options.keys().find(|key| !SHARED.contains(&key.as_str()) && !driver.takes(key)) {
        return invalid(match driver {
            Driver::Local => format!("unknown log opt '{unknown}' for log driver local"),
            _ => format!("unknown log opt '{unknown}' for {} log driver", driver.name()),
        });
    }
    if driver == Driver::Syslog
        && let Err(text) = syslog(options)
    {
        return invalid(text);
    }
    match options.get("cache-disabled") {
        Some(text) if !text.is_empty() && parse_bool(text).is_err() => {
            invalid(format!("invalid value for option cache-disabled: {text}"))
        }
        _ => Ok(()),
    }
}

/// Whether `docker logs` has something to read.
pub(crate) fn readable(config: &LogConfig) -> bool {
    config.driver != "none" && keeps(config)
}

/// A log that goes elsewhere is kept here as well (Docker's "dual logging"), unless that is not wanted.
fn keeps(config: &LogConfig) -> bool {
    let elsewhere = matches!(config.driver.as_str(), "syslog" | "journald");
    !elsewhere || config.config.get("cache-disabled").is_none_or(|text| parse_bool(text) != Ok(true))
}

/// How a container's log is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// Of the file; `None` is none.
    pub(crate) rotation: Option<Rotation>,
    pub(crate) remote: Option<Target>,
    /// Beside every line.
    pub(crate) attributes: BTreeMap<String, String>,
}

/// Reads the values; `None` keeps nothing.
///
/// # Errors
///
/// A value that is not what its option takes, in the words of a start that fails of it.
pub(crate) fn settings(record: &ContainerRecord) -> Result<Option<Settings>> {
    let config = &record.host_config.log_config;
    let read = || -> std::result::Result<Option<Settings>, String> {
        let options = &config.config;
        let driver = Driver::named(&config.driver).map_err(|e| e.to_string())?;
        let rotation = match driver {
            Driver::None => return Ok(None),
            Driver::JsonFile => Some(json_file(options)?),
            Driver::Local => Some(local(options, "")?),
            Driver::Syslog | Driver::Journald if !keeps(config) => None,
            Driver::Syslog | Driver::Journald => Some(local(options, "cache-")?),
        };
        let mut attributes = attributes(record, options)?;
        let template = options.get("tag").map_or("", String::as_str);
        let tag = tag::expand(template, record)?;
        // A tag that nobody asked for is the remote's alone.
        let remote_tag = if template.is_empty() { record.id.short() } else { &tag };
        let (address, format) = match driver {
            Driver::Syslog => {
                let (address, facility, style) = syslog(options)?;
                let hostname = nix::unistd::gethostname().map(|h| h.to_string_lossy().into_owned()).unwrap_or_default();
                (address, Format::Syslog(Syslog { facility, style, tag: remote_tag.to_owned(), hostname }))
            }
            Driver::Journald => (Address::Journal, Format::Journald(Journald::new(record, remote_tag, &attributes))),
            Driver::JsonFile | Driver::Local | Driver::None => {
                if !tag.is_empty() {
                    attributes.insert("tag".to_owned(), tag);
                }
                return Ok(Some(Settings { rotation, attributes, remote: None }));
            }
        };
        let limit_bytes = match options.get("max-buffer-size") {
            Some(size) => usize::try_from(parse_size(size, 1024.0)?).unwrap_or(usize::MAX),
            None => BUFFER_BYTES,
        };
        let drops = options.get("mode").is_some_and(|mode| mode == "non-blocking");
        Ok(Some(Settings { rotation, attributes, remote: Some(Target { address, format, limit_bytes, drops }) }))
    };
    read().map_err(|why| EngineError::Internal(format!("failed to initialize logging driver: {why}")))
}

fn syslog(options: &BTreeMap<String, String>) -> std::result::Result<(Address, u8, syslog::Style), String> {
    let option = |name: &str| options.get(name).map_or("", String::as_str);
    let address = syslog::address(option("syslog-address"))?;
    Ok((address, syslog::facility(option("syslog-facility"))?, syslog::style(option("syslog-format"))?))
}

fn json_file(options: &BTreeMap<String, String>) -> std::result::Result<Rotation, String> {
    let mut rotation = Rotation { max_bytes: None, max_files: 1, compress: false };
    if let Some(size) = options.get("max-size") {
        match parse_size(size, 1000.0)? {
            0 => return Err("max-size must be a positive number".to_owned()),
            bytes => rotation.max_bytes = Some(bytes),
        }
    }
    if let Some(count) = options.get("max-file") {
        rotation.max_files = usize::try_from(parse_int(count)?)
            .ok()
            .filter(|n| *n > 0)
            .ok_or_else(|| "max-file cannot be less than 1".to_owned())?;
    }
    if let Some(compress) = options.get("compress") {
        rotation.compress = parse_bool(compress)?;
        if rotation.compress && (rotation.max_files == 1 || rotation.max_bytes.is_none()) {
            return Err("compress cannot be true when max-file is less than 2 or max-size is not set".to_owned());
        }
    }
    Ok(rotation)
}

/// `prefix` is `cache-` for the log kept beside one that goes elsewhere.
fn local(options: &BTreeMap<String, String>, prefix: &str) -> std::result::Result<Rotation, String> {
    let option = |name: &str| options.get(&format!("{prefix}{name}"));
    let mut rotation = Rotation { max_bytes: Some(20_000_000), max_files: 5, compress: true };
    if let Some(size) = option("max-size") {
        let bytes = parse_size(size, 1000.0).map_err(|e| format!("invalid value for max-size: {size}: {e}"))?;
        rotation.max_bytes = Some(bytes);
    }
    if let Some(count) = option("max-file") {
        let number = parse_int(count).map_err(|e| format!("invalid value for max-file: {count}: {e}"))?;
        rotation.max_files = usize::try_from(number).map_err(|_| "max file count cannot be less than 0".to_owned())?;
    }
    if let Some(compress) = option("compress") {
        rotation.compress = parse_bool(compress).map_err(|e| format!("error reading compress log option: {e}"))?;
    }
    if rotation.compress && rotation.max_files <= 1 {
        return Err("compression cannot be enabled when max file count is 1".to_owned());
    }
    Ok(rotation)
}

/// The labels and variables of the container that its options name.
fn attributes(
    record: &ContainerRecord,
    options: &BTreeMap<String, String>,
) -> std::result::Result<BTreeMap<String, String>, String> {
    let mut found = BTreeMap::new();
    let env: BTreeMap<String, String> = record
        .config
        .env
        .iter()
        .filter_map(|e| e.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    for (from, option) in [(&record.config.labels, "labels"), (&env, "env")] {
        let named = options.get(option).into_iter().flat_map(|names| names.split(','));
        found.extend(named.filter_map(|name| Some((name.to_owned(), from.get(name)?.clone()))));
        if let Some(pattern) = options.get(&format!("{option}-regex")).filter(|p| !p.is_empty()) {
            let pattern = regex::Regex::new(pattern).map_err(|e| format!("error parsing regexp: {e}"))?;
            let matching = from.iter().filter(|(name, _)| pattern.is_match(name));
            found.extend(matching.map(|(name, value)| (name.clone(), value.clone())));
        }
    }
    Ok(found)
}

/// go-units: `FromHumanSize` with a `kilo` of 1000, `RAMInBytes` with one of 1024.
fn parse_size(text: &str, kilo: f64) -> std::result::Result<u64, String> {
    let invalid = || format!("invalid size: '{text}'");
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let digits = Some(&text[..end]).filter(|digits| digits.starts_with(|c: char| c.is_ascii_digit()));
    let number: f64 = digits.and_then(|digits| digits.parse().ok()).ok_or_else(invalid)?;
    let unit = text[end..].strip_prefix(' ').unwrap_or(&text[end..]).to_ascii_lowercase();
    let unit = unit.strip_suffix('b').unwrap_or(&unit);
    let unit = unit.strip_suffix('i').unwrap_or(unit);
    let power = ["", "k", "m", "g", "t", "p"].iter().position(|u| *u == unit).ok_or_else(invalid)?;
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    Ok((number * kilo.powi(i32::try_from(power).unwrap_or(0))) as u64)
}

fn parse_int(text: &str) -> std::result::Result<i64, String> {
    text.parse().map_err(|_| format!("strconv.Atoi: parsing {text:?}: invalid syntax"))
}

fn parse_bool(text: &str) -> std::result::Result<bool, String> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        _ => Err(format!("strconv.ParseBool: parsing {text:?}: invalid syntax")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn sizes_are_read_as_go_units_reads_them() {
        for (text, bytes) in
            [("10k", 10_000), ("1.5 MB", 1_500_000), ("1kib", 1000), ("7", 7), ("0b", 0), ("2G", 2_000_000_000)]
        {
            assert_eq!(parse_size(text, 1000.0), Ok(bytes), "{text}");
        }
        assert_eq!(parse_size("1m", 1024.0), Ok(1 << 20));
        for bad in ["", "x", "-1", "1x", "1 0", "1  k", ".5k", "1.2.3", "1kk"] {
            assert_eq!(parse_size(bad, 1000.0), Err(format!("invalid size: '{bad}'")), "{bad}");
        }
    }

    #[test]
    fn files_are_kept_as_the_options_say() {
        let json = |pairs: &[(&str, &str)]| json_file(&options(pairs));
        assert_eq!(json(&[]), Ok(Rotation { max_bytes: None, max_files: 1, compress: false }));
        let all = [("max-size", "1m"), ("max-file", "3"), ("compress", "true")];
        assert_eq!(json(&all), Ok(Rotation { max_bytes: Some(1_000_000), max_files: 3, compress: true }));
        assert_eq!(json(&[("max-size", "0")]), Err("max-size must be a positive number".to_owned()));
        assert_eq!(json(&[("max-file", "0")]), Err("max-file cannot be less than 1".to_owned()));
        let local = |pairs: &[(&str, &str)]| local(&options(pairs), "");
        assert_eq!(local(&[]), Ok(Rotation { max_bytes: Some(20_000_000), max_files: 5, compress: true }));
        assert_eq!(
            local(&[("max-file", "1")]),
            Err("compression cannot be enabled when max file count is 1".to_owned())
        );
    }
}
