//! A container's settings: the image's where the request says nothing, and the command that comes of both.

use std::collections::BTreeMap;

use skep_model::container::{ContainerConfig, HealthConfig, StringOrList};

use crate::error::{EngineError, Result};

/// The image's settings under the request's (moby `merge`).
pub(super) fn merge(config: &mut ContainerConfig, image: &ContainerConfig) {
    if config.user.is_empty() {
        config.user.clone_from(&image.user);
    }
    for (port, empty) in &image.exposed_ports {
        config.exposed_ports.entry(port.clone()).or_insert(*empty);
    }
    let name_of = |variable: &str| variable.split('=').next().unwrap_or_default().to_owned();
    let own: Vec<String> = config.env.iter().map(|e| name_of(e)).collect();
    let mut env: Vec<String> = image.env.iter().filter(|e| !own.contains(&name_of(e))).cloned().collect();
    env.append(&mut config.env);
    config.env = env;
    for (key, value) in &image.labels {
        config.labels.entry(key.clone()).or_insert_with(|| value.clone());
    }
    let is_empty = |list: &Option<StringOrList>| list.as_ref().is_none_or(|l| l.0.is_empty());
    if is_empty(&config.entrypoint) {
        if is_empty(&config.cmd) {
            config.cmd.clone_from(&image.cmd);
        }
        if config.entrypoint.is_none() {
            config.entrypoint.clone_from(&image.entrypoint);
        }
    }
    if config.entrypoint.as_ref().is_some_and(|list| list.0.first().is_some_and(String::is_empty)) {
        // `--entrypoint ""` takes the image's away.
        config.entrypoint = None;
    }
    match (&mut config.healthcheck, &image.healthcheck) {
        (None, Some(inherited)) => config.healthcheck = Some(inherited.clone()),
        (Some(own), Some(inherited)) => merge_health(own, inherited),
        (_, None) => {}
    }
    if config.working_dir.is_empty() {
        config.working_dir.clone_from(&image.working_dir);
    }
    if let Some(volumes) = &image.volumes {
        let own = config.volumes.get_or_insert_with(BTreeMap::new);
        for (path, empty) in volumes {
            own.entry(path.clone()).or_insert(*empty);
        }
    }
    if config.stop_signal.is_empty() {
        config.stop_signal.clone_from(&image.stop_signal);
    }
    if config.shell.is_none() {
        config.shell.clone_from(&image.shell);
    }
}

fn merge_health(own: &mut HealthConfig, image: &HealthConfig) {
    if own.test.is_empty() {
        own.test.clone_from(&image.test);
    }
    let inherit = |mine: &mut i64, theirs: i64| {
        if *mine == 0 {
            *mine = theirs;
        }
    };
    inherit(&mut own.interval, image.interval);
    inherit(&mut own.timeout, image.timeout);
    inherit(&mut own.start_period, image.start_period);
    inherit(&mut own.start_interval, image.start_interval);
    inherit(&mut own.retries, image.retries);
}

/// Entrypoint, then command.
pub(super) fn command(config: &ContainerConfig) -> Result<(String, Vec<String>)> {
    let list = |l: &Option<StringOrList>| l.as_ref().map(|l| l.0.clone()).unwrap_or_default();
    let mut words = list(&config.entrypoint);
    words.extend(list(&config.cmd));
    if words.is_empty() {
        return Err(EngineError::Invalid("no command specified".to_owned()));
    }
    let path = words.remove(0);
    Ok((path, words))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_fills_in_what_the_request_leaves_open() {
        let words = |w: &[&str]| Some(StringOrList(w.iter().map(|s| (*s).to_owned()).collect()));
        let image = ContainerConfig {
            env: vec!["PATH=/bin".into(), "A=1".into()],
            entrypoint: words(&["/entry"]),
            cmd: words(&["default"]),
            user: "bee".into(),
            ..ContainerConfig::default()
        };
        let check = |mut config: ContainerConfig| {
            merge(&mut config, &image);
            (command(&config).map(|(p, a)| format!("{p} {}", a.join(" "))), config)
        };
        let (run, config) = check(ContainerConfig { env: vec!["A=2".into()], ..ContainerConfig::default() });
        assert_eq!(run.unwrap(), "/entry default");
        assert_eq!(config.env, ["PATH=/bin", "A=2"]);
        assert_eq!(config.user, "bee");
        let (run, _) = check(ContainerConfig { cmd: words(&["x"]), ..ContainerConfig::default() });
        assert_eq!(run.unwrap(), "/entry x");
        let (run, _) = check(ContainerConfig { entrypoint: words(&["/own"]), ..ContainerConfig::default() });
        assert_eq!(run.unwrap(), "/own ", "an own entrypoint leaves the image's command out");
    }
}
