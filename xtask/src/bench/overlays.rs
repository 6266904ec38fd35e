//! One TCP stream between containers of two hosts, on a plain and on an encrypted overlay, in turn. Without the peer: where
//! the kernel has no ESP, as here, it runs nothing on an encrypted network.

use std::path::Path;

use anyhow::Context;
use serde_json::{Value, json};

use super::Figures;
use super::api::Api;
use super::lab::Lab;
use super::services::{IMAGE, ImageTar, give_image};

const ROUNDS: usize = 5;
const SECONDS: &str = "4";

/// A container on each of two hosts, on a network of their own.
struct Pair {
    metric: &'static str,
    server: String,
    client: String,
    address: String,
}

fn start(lab: &Lab, api: &mut Api, metric: &'static str, network: &str, options: &Value) -> anyhow::Result<Pair> {
    let spec = json!({ "Name": network, "Driver": "overlay", "Options": options });
    api.call("POST", "/networks/create", Some(&spec))?;
    let mut namespaces = Vec::new();
    let mut address = String::new();
    for host in [1, 2] {
        let name = format!("{network}-{host}");
        let id = api.create(&json!({
            "Name": name,
            "TaskTemplate": {
                "ContainerSpec": { "Image": IMAGE, "Command": ["/bin/sleep", "100000"], "StopGracePeriod": 0 },
                "Placement": { "Constraints": [format!("node.hostname=={}", lab.hosts[host].name)] },
                "Networks": [{ "Target": network }],
            },
        }))?;
        api.await_running(&id, 1, |_| true)?;
        let task = api.tasks(&id)?.pop().context("no task")?;
        let container = task["Status"]["ContainerStatus"]["ContainerID"].as_str().context("no container")?.to_owned();
        namespaces.push(format!("--net=/run/skep/netns/{container}"));
        if host == 1 {
            let first = task["NetworksAttachments"][0]["Addresses"][0].as_str().context("no address")?;
            address = first.split('/').next().unwrap_or(first).to_owned();
        }
    }
    let client = namespaces.pop().context("no client")?;
    let server = namespaces.pop().context("no server")?;
    Ok(Pair { metric, server, client, address })
}

pub(super) fn measure(skep: &Path, tar: &ImageTar, out: &mut Figures) -> anyhow::Result<()> {
    let lab = Lab::up(skep, "overlays", None, 1, 2)?;
    give_image(&lab, tar)?;
    let mut api = lab.api(0)?;
    let pairs = [
        start(&lab, &mut api, "overlay_plain_gbit_s", "plain", &json!({}))?,
        start(&lab, &mut api, "overlay_encrypted_gbit_s", "sealed", &json!({ "encrypted": "" }))?,
    ];
    let (server, client) = (lab.hosts[1].name.as_str(), lab.hosts[2].name.as_str());
    for pair in &pairs {
        lab.run("exec", &[server, "--", "nsenter", &pair.server, "iperf3", "--server", "--daemon"])
            .context("iperf3 is needed")?;
    }
    for _ in 0..ROUNDS {
        for pair in &pairs {
            let command = ["nsenter", &pair.client, "iperf3", "--json", "--time", SECONDS, "--client", &pair.address];
            let said: Value = serde_json::from_str(&lab.run("exec", &[&[client, "--"], &command[..]].concat())?)?;
            let bits = said["end"]["sum_received"]["bits_per_second"].as_f64().context("no throughput")?;
            out.entry(pair.metric.into()).or_default().push(bits / 1e9);
        }
    }
    Ok(())
}
