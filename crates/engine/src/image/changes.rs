//! The Dockerfile instructions that `docker import --change` and `docker commit --change` take.

use std::collections::BTreeMap;

use skep_model::container::{ContainerConfig, Empty, HealthConfig, StringOrList};

use super::{ImageError, Result};

/// Applies instructions in order; the first that cannot be read refuses all.
pub(super) fn apply(config: &mut ContainerConfig, changes: &[String]) -> Result<()> {
    for line in changes.iter().flat_map(|change| change.lines()).map(str::trim).filter(|line| !line.is_empty()) {
        instruction(config, line)?;
    }
    Ok(())
}

fn instruction(config: &mut ContainerConfig, line: &str) -> Result<()> {
    let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let rest = rest.trim();
    let word = word.to_ascii_uppercase();
    if rest.is_empty() && word != "CMD" && word != "ENTRYPOINT" {
        return Err(ImageError::Invalid(format!("{word} requires at least one argument")));
    }
    match word.as_str() {
        "CMD" => config.cmd = Some(StringOrList(command(rest))),
        "ENTRYPOINT" => config.entrypoint = Some(StringOrList(command(rest))),
        "ENV" => {
            for (key, value) in pairs(&word, rest)? {
                let prefix = format!("{key}=");
                config.env.retain(|existing| !existing.starts_with(&prefix));
                config.env.push(format!("{key}={value}"));
            }
        }
        "LABEL" => config.labels.extend(pairs(&word, rest)?),
        "EXPOSE" => {
            for port in words(rest) {
                config.exposed_ports.extend(ports(&port)?.into_iter().map(|port| (port, Empty {})));
            }
        }
        "VOLUME" => {
            let paths = json_list(rest).unwrap_or_else(|| words(rest));
            config.volumes.get_or_insert_default().extend(paths.into_iter().map(|path| (path, Empty {})));
        }
        "USER" => rest.clone_into(&mut config.user),
        "WORKDIR" => config.working_dir = join(&config.working_dir, rest),
        "STOPSIGNAL" => rest.clone_into(&mut config.stop_signal),
        "HEALTHCHECK" => config.healthcheck = Some(health(rest)?),
        "SHELL" => {
            let list = json_list(rest);
            config.shell =
                Some(list.ok_or_else(|| {
                    ImageError::Invalid("SHELL requires the arguments to be in JSON form".to_owned())
                })?);
        }
        "ONBUILD" => return Err(ImageError::Invalid("ONBUILD is not supported here".to_owned())),
        other => {
            return Err(ImageError::Invalid(format!("{} is not a valid change command", other.to_lowercase())));
        }
    }
    Ok(())
}

/// `["a", "b"]`, or a shell line.
fn command(rest: &str) -> Vec<String> {
    json_list(rest).unwrap_or_else(|| vec!["/bin/sh".to_owned(), "-c".to_owned(), rest.to_owned()])
}

fn json_list(text: &str) -> Option<Vec<String>> {
    text.starts_with('[').then(|| serde_json::from_str(text).ok()).flatten()
}

/// `a=b c="d e"`, or the old form `a b c`: one key, the rest its value.
fn pairs(word: &str, rest: &str) -> Result<BTreeMap<String, String>> {
    let list = words(rest);
    if list.first().is_some_and(|first| !first.contains('=')) {
        let (key, value) = rest
            .split_once(char::is_whitespace)
            .ok_or_else(|| ImageError::Invalid(format!("{word} must have two arguments")))?;
        return Ok(BTreeMap::from([(key.to_owned(), value.trim().to_owned())]));
    }
    let split = |pair: &String| match pair.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(ImageError::Invalid(format!(
            "Syntax error - can't find = in {pair:?}. Must be of the form: name=value"
        ))),
    };
    list.iter().map(split).collect()
}

/// Words with quotes and backslashes taken away.
fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(q), c) if c == q => quote = None,
            (None, '"' | '\'') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (Some('"') | None, '\\') => word.get_or_insert_default().extend(chars.next()),
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

/// `80`, `80/udp`, `8000-8002`.
fn ports(text: &str) -> Result<Vec<String>> {
    let bad = || ImageError::Invalid(format!("invalid containerPort: {text}"));
    let (range, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let (low, high) = range.split_once('-').unwrap_or((range, range));
    let number = |text: &str| text.parse::<u16>().map_err(|_| bad());
    let (low, high, protocol) = (number(low)?, number(high)?, protocol.to_ascii_lowercase());
    if high < low || !matches!(protocol.as_str(), "tcp" | "udp" | "sctp") {
        return Err(bad());
    }
    Ok((low..=high).map(|port| format!("{port}/{protocol}")).collect())
}

fn join(base: &str, path: &str) -> String {
    if path.starts_with('/') {
        return path.to_owned();
    }
    format!("{}/{path}", base.trim_end_matches('/'))
}

fn health(rest: &str) -> Result<HealthConfig> {
    let bad = |why: &str| ImageError::Invalid(format!("HEALTHCHECK: {why}"));
    let mut check = HealthConfig::default();
    let mut rest = rest;
    while let Some(option) = rest.strip_prefix("--") {
        let (option, after) = option.split_once(char::is_whitespace).ok_or_else(|| bad("missing command"))?;
        let (key, value) = option.split_once('=').ok_or_else(|| bad("an option has no value"))?;
        let duration = || super::filter::parse_duration(value).ok_or_else(|| bad("invalid duration"));
        match key {
            "interval" => check.interval = duration()?,
            "timeout" => check.timeout = duration()?,
            "start-period" => check.start_period = duration()?,
            "start-interval" => check.start_interval = duration()?,
            "retries" => check.retries = value.parse().map_err(|_| bad("invalid number of retries"))?,
            _ => return Err(bad("unknown option")),
        }
        rest = after.trim_start();
    }
    check.test = match rest.split_once(char::is_whitespace) {
        None if rest.eq_ignore_ascii_case("NONE") => vec!["NONE".to_owned()],
        Some((word, command)) if word.eq_ignore_ascii_case("CMD") => match json_list(command.trim()) {
            Some(list) => std::iter::once("CMD".to_owned()).chain(list).collect(),
            None => vec!["CMD-SHELL".to_owned(), command.trim().to_owned()],
        },
        _ => return Err(bad("unknown type, expected CMD or NONE")),
    };
    Ok(check)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(changes: &[&str]) -> Result<ContainerConfig> {
        let mut config = ContainerConfig::default();
        apply(&mut config, &changes.iter().map(|&c| c.to_owned()).collect::<Vec<_>>())?;
        Ok(config)
    }

    #[test]
    fn instructions_change_the_config() {
        let config = changed(&[
            "CMD [\"httpd\", \"-f\"]",
            "ENTRYPOINT run it",
            "ENV A=1 B=\"x y\"",
            "env A=2",
            "ENV OLD some words",
            "EXPOSE 80 53/udp 8000-8001",
            "WORKDIR /srv",
            "WORKDIR www",
            "USER bee:hive",
            "LABEL a.b=c",
            "VOLUME [\"/data\"]",
            "VOLUME /log /tmp",
            "STOPSIGNAL SIGINT",
            "HEALTHCHECK --interval=5s --retries=2 CMD true",
        ])
        .unwrap();
        assert_eq!(config.cmd.unwrap().0, ["httpd", "-f"]);
        assert_eq!(config.entrypoint.unwrap().0, ["/bin/sh", "-c", "run it"]);
        assert_eq!(config.env, ["B=x y", "A=2", "OLD=some words"]);
        assert_eq!(config.exposed_ports.keys().collect::<Vec<_>>(), ["53/udp", "80/tcp", "8000/tcp", "8001/tcp"]);
        assert_eq!(config.working_dir, "/srv/www");
        assert_eq!(config.user, "bee:hive");
        assert_eq!(config.labels["a.b"], "c");
        assert_eq!(config.volumes.unwrap().keys().collect::<Vec<_>>(), ["/data", "/log", "/tmp"]);
        assert_eq!(config.stop_signal, "SIGINT");
        let health = config.healthcheck.unwrap();
        assert_eq!((health.interval, health.retries), (5_000_000_000, 2));
        assert_eq!(health.test, ["CMD-SHELL", "true"]);
    }

    #[test]
    fn bad_instructions_are_refused() {
        for (change, text) in [
            ("RUN x", "run is not a valid change command"),
            ("ENV", "ENV requires at least one argument"),
            ("ENV A=1 B", "can't find = in \"B\""),
            ("EXPOSE 70000", "invalid containerPort: 70000"),
        ] {
            let error = changed(&[change]).unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
    }
}
