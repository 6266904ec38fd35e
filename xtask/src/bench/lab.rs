//! A lab for a benchmark.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};
use serde_json::Value;

use super::api::Api;

/// A lab that goes away with its value.
pub(super) struct Lab<'a> {
    pub(super) skep: &'a Path,
    pub(super) name: &'static str,
    pub(super) hosts: Vec<Host>,
}

/// One host of a lab: its name, and the socket of its daemon.
pub(super) struct Host {
    pub(super) name: String,
    pub(super) socket: String,
}

impl Drop for Lab<'_> {
    fn drop(&mut self) {
        let _ = Command::new(self.skep).args(["lab", "down", "--name", self.name]).output();
    }
}

impl<'a> Lab<'a> {
    pub(super) fn up(
        skep: &'a Path,
        name: &'static str,
        daemon: Option<&str>,
        managers: usize,
        workers: usize,
    ) -> anyhow::Result<Self> {
        let _ = Command::new(skep).args(["lab", "down", "--name", name]).output();
        let mut command = Command::new(skep);
        command.args(["lab", "up", "--name", name]);
        command.args(["--managers", &managers.to_string(), "--workers", &workers.to_string()]);
        command.args(daemon.iter().flat_map(|d| ["--daemon", d]));
        let output = command.output()?;
        if !output.status.success() {
            bail!("lab up: {}", String::from_utf8_lossy(&output.stderr));
        }
        let mut lab = Self { skep, name, hosts: Vec::new() };
        let listed = Command::new(skep).args(["lab", "ls", "--name", name, "--format", "json"]).output()?;
        for host in serde_json::from_slice::<Vec<Value>>(&listed.stdout)? {
            let text = |key: &str| host[key].as_str().unwrap_or_default().to_owned();
            let socket = text("docker_host").trim_start_matches("unix://").to_owned();
            lab.hosts.push(Host { name: text("name"), socket });
        }
        Ok(lab)
    }

    /// A subcommand of `skep lab` on this one.
    pub(super) fn run(&self, subcommand: &str, args: &[&str]) -> anyhow::Result<String> {
        let output = Command::new(self.skep).args(["lab", subcommand, "--name", self.name]).args(args).output()?;
        if !output.status.success() {
            bail!("lab {subcommand}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    pub(super) fn api(&self, host: usize) -> anyhow::Result<Api> {
        Api::open(&self.hosts[host].socket)
    }

    /// The manager that leads, as the given one tells it once it knows.
    pub(super) fn leader(&self, asked: usize) -> anyhow::Result<usize> {
        let mut leader = None;
        self.api(asked)?.until(|api| {
            let nodes = api.call("GET", "/nodes", None)?;
            let leads = |n: &&Value| n["ManagerStatus"]["Leader"] == true;
            let node = nodes.as_array().into_iter().flatten().find(leads);
            let name = node.and_then(|n| n["Description"]["Hostname"].as_str());
            leader = self.hosts.iter().position(|h| Some(h.name.as_str()) == name);
            Ok(leader.is_some())
        })?;
        leader.context("no leader")
    }
}
