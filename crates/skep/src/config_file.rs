//! `daemon.json`: the same words as the flags, as dockerd reads them. A key that is set in both places with different values
//! is an error, as with dockerd; an unknown key is an error too.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde_json::{Map, Value};

use crate::args::DaemonFlags;

/// Read in this order when `--config-file` is not given; having none is fine.
const DEFAULT_FILES: [&str; 2] = ["/etc/skep/daemon.json", "/etc/docker/daemon.json"];

/// Adds what the configuration file says to what the flags say.
pub(crate) fn merge(flags: &mut DaemonFlags) -> anyhow::Result<()> {
    let path = match &flags.config_file {
        Some(path) => path.clone(),
        None => match DEFAULT_FILES.iter().map(PathBuf::from).find(|p| p.exists()) {
            Some(path) => path,
            None => return Ok(()),
        },
    };
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("unable to configure the daemon with file {}", path.display()))?;
    merge_text(flags, &text, &path)
}

fn merge_text(flags: &mut DaemonFlags, text: &str, path: &Path) -> anyhow::Result<()> {
    let name = path.display();
    let object: Map<String, Value> =
        serde_json::from_str(text).with_context(|| format!("unable to configure the daemon with file {name}"))?;
    let list = |value: &Value| -> anyhow::Result<Vec<String>> {
        match value {
            Value::String(one) => Ok(vec![one.clone()]),
            Value::Array(many) => {
                many.iter().map(|v| v.as_str().map(str::to_owned).context("a list of strings is wanted")).collect()
            }
            _ => bail!("a list of strings is wanted"),
        }
    };
    for (key, value) in &object {
        let put_list = |target: &mut Vec<String>| -> anyhow::Result<()> {
            if !target.is_empty() {
                bail!("the following directives are specified both as a flag and in the configuration file: {key}");
            }
            *target = list(value)?;
            Ok(())
        };
        let text = || value.as_str().map(str::to_owned).context("a string is wanted");
        let flag = || value.as_bool().context("true or false is wanted");
        let result = match key.as_str() {
            "hosts" => put_list(&mut flags.host),
            "labels" => put_list(&mut flags.label),
            "insecure-registries" => put_list(&mut flags.insecure_registry),
            "registry-mirrors" => put_list(&mut flags.registry_mirror),
            "node-generic-resources" => put_list(&mut flags.node_generic_resource),
            "dns" => put_list(&mut flags.dns),
            "data-root" => text().map(|t| flags.data_root = flags.data_root.take().or(Some(t.into()))),
            "exec-root" => text().map(|t| flags.exec_root = flags.exec_root.take().or(Some(t.into()))),
            "pidfile" => text().map(|t| flags.pidfile = flags.pidfile.take().or(Some(t.into()))),
            "log-level" => text().map(|t| flags.log_level = flags.log_level.take().or(Some(t))),
            "log-driver" => text().map(|t| flags.log_driver = flags.log_driver.take().or(Some(t))),
            "log-opts" => value
                .as_object()
                .context("an object is wanted")
                .map(|o| flags.log_opt.extend(o.iter().filter_map(|(k, v)| Some(format!("{k}={}", v.as_str()?))))),
            "cgroup-parent" => text().map(|t| flags.cgroup_parent = flags.cgroup_parent.take().or(Some(t))),
            "bip" => text().map(|t| flags.bip = flags.bip.take().or(Some(t))),
            "group" => text().map(|t| flags.group = flags.group.take().or(Some(t))),
            "swarm-default-advertise-addr" => text()
                .map(|t| flags.swarm_default_advertise_addr = flags.swarm_default_advertise_addr.take().or(Some(t))),
            "default-address-pools" => value.as_array().context("a list is wanted").and_then(|pools| {
                for pool in pools {
                    let base = pool["base"].as_str().context("a pool has a base")?;
                    let size = pool["size"].as_u64().context("a pool has a size")?;
                    flags.default_address_pool.push(format!("base={base},size={size}"));
                }
                Ok(())
            }),
            "debug" => flag().map(|b| flags.debug |= b),
            "live-restore" => flag().map(|b| flags.live_restore |= b),
            "tls" => flag().map(|b| flags.tls |= b),
            "tlsverify" => flag().map(|b| flags.tlsverify |= b),
            "tlscacert" => text().map(|t| flags.tlscacert = flags.tlscacert.take().or(Some(t.into()))),
            "tlscert" => text().map(|t| flags.tlscert = flags.tlscert.take().or(Some(t.into()))),
            "tlskey" => text().map(|t| flags.tlskey = flags.tlskey.take().or(Some(t.into()))),
            "storage-driver" => text().map(|t| flags.storage_driver = flags.storage_driver.take().or(Some(t))),
            "userns-remap" => text().map(|t| flags.userns_remap = (!t.is_empty()).then_some(t)),
            "iptables"
            | "ip6tables"
            | "ip-forward"
            | "ip-masq"
            | "userland-proxy"
            | "experimental"
            | "features"
            | "storage-opts"
            | "exec-opts"
            | "max-concurrent-downloads"
            | "max-concurrent-uploads"
            | "builder"
            | "max-download-attempts"
            | "shutdown-timeout"
            | "metrics-addr"
            | "mtu"
            | "raw-logs" => {
                tracing::warn!(key, file = %name, "this key of the configuration file has no meaning here and is passed over");
                Ok(())
            }
            _ => bail!(
                "unable to configure the daemon with file {name}: the following directives don't match any configuration \
                 option: {key}"
            ),
        };
        result.with_context(|| format!("unable to configure the daemon with file {name}: {key}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(text: &str) -> anyhow::Result<DaemonFlags> {
        let mut flags = DaemonFlags { label: vec!["from=flag".into()], ..Default::default() };
        merge_text(&mut flags, text, Path::new("/etc/docker/daemon.json")).map(|()| flags)
    }

    #[test]
    fn keys_are_dockerds() {
        let flags = merged(
            r#"{"insecure-registries":["registry:5000"],"debug":true,"data-root":"/d","iptables":false,
                "default-address-pools":[{"base":"10.9.0.0/16","size":24}]}"#,
        )
        .unwrap();
        assert_eq!(flags.insecure_registry, ["registry:5000"]);
        assert_eq!(flags.default_address_pool, ["base=10.9.0.0/16,size=24"]);
        assert!(flags.debug);
    }

    #[test]
    fn clashes_and_strangers_are_errors() {
        assert!(
            format!("{:#}", merged(r#"{"labels":["a=b"]}"#).unwrap_err())
                .contains("both as a flag and in the configuration file: labels")
        );
        assert!(
            merged(r#"{"nope":1}"#).unwrap_err().to_string().contains("don't match any configuration option: nope")
        );
        assert!(merged("{").is_err());
    }
}
