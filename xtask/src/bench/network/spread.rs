//! How long until every host knows: a task more, a task less, a host that dies, a host that comes back to the others.
//!
//! Asked of the resolver in a container of every host. A host's names follow its balancers and its mesh, in this order.

use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use serde_json::{Value, json};

use super::load::Namespace;
use crate::bench::api::Api;
use crate::bench::lab::Lab;
use crate::bench::services::{IMAGE, ImageTar, give_image, spec};
use crate::bench::{Figures, Options};

const SERVICES: u64 = 50;
const HOSTS: u64 = 3;
const DAY_MS: f64 = 86_400e3;

struct Watcher(Child);

impl Drop for Watcher {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits on each host for the moment at which `tasks.s0` has so many addresses (0: some), and none of `without`.
struct Watch(Vec<Watcher>);

impl Watch {
    fn start(skep: &Path, places: &[&Namespace], count: u64, without: &[String]) -> anyhow::Result<Self> {
        let start = |place: &&Namespace| {
            let mut command = place.command(&skep.to_string_lossy());
            command.args(["bench-network", "await", "tasks.s0", &count.to_string()]);
            command.args(without.iter().map(|address| format!("--without={address}")));
            Ok(Watcher(command.stdout(Stdio::piped()).spawn()?))
        };
        Ok(Self(places.iter().map(start).collect::<anyhow::Result<_>>()?))
    }

    /// Milliseconds since 1970 of the last to know.
    fn last(self) -> anyhow::Result<f64> {
        let mut last = 0f64;
        for mut watcher in self.0 {
            let mut said = String::new();
            std::io::Read::read_to_string(watcher.0.stdout.as_mut().context("piped")?, &mut said)?;
            last = last.max(said.trim().parse().context("a host never knew")?);
        }
        Ok(last)
    }
}

fn now_ms() -> anyhow::Result<f64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64() * 1e3)
}

/// Milliseconds since midnight of `2006-01-02T15:04:05.999999999Z`.
fn in_day_ms(moment: &str) -> anyhow::Result<f64> {
    let time = moment.split_once('T').context("a moment")?.1.trim_end_matches('Z');
    let parts: Vec<f64> = time.split(':').map(str::parse).collect::<Result<_, _>>()?;
    let &[hours, minutes, seconds] = &parts[..] else { bail!("{moment} is no moment") };
    Ok(((hours * 60.0 + minutes) * 60.0 + seconds) * 1e3)
}

fn service(number: u64, replicas: u64) -> Value {
    let mut spec = spec(&format!("s{number}"), replicas, &[]);
    spec["TaskTemplate"]["Networks"] = json!([{ "Target": "spread" }]);
    spec
}

/// Replicas of service 0 as they are wanted from now on; returns when that was asked for.
fn scale(api: &mut Api, id: &str, replicas: u64) -> anyhow::Result<f64> {
    let asked = now_ms()?;
    api.update(id, &service(0, replicas))?;
    Ok(asked)
}

pub(super) fn measure(skep: &Path, options: &Options, tar: &ImageTar, out: &mut Figures) -> anyhow::Result<()> {
    let lab = Lab::up(skep, "spread", None, 1, 2)?;
    give_image(&lab, tar)?;
    let mut api = lab.api(0)?;
    let network = json!({ "Name": "spread", "Driver": "overlay", "Attachable": true, "IPAM": { "Config": [{ "Subnet": "10.60.0.0/22" }] } });
    api.call("POST", "/networks/create", Some(&network))?;
    // At least one on each host: the faults take some away.
    let replicas = (options.containers * HOSTS).div_ceil(SERVICES).max(HOSTS);
    let ids: Vec<String> =
        (0..SERVICES).map(|number| api.create(&service(number, replicas))).collect::<anyhow::Result<_>>()?;
    for id in &ids {
        api.await_running(id, usize::try_from(replicas)?, |_| true)?;
    }
    let mut put = |name: &str, value: f64| out.entry(format!("network_{name}")).or_default().push(value);
    put("spread_containers_a_host", (replicas * SERVICES) as f64 / HOSTS as f64);
    let places: Vec<Namespace> = (0..lab.hosts.len()).map(|host| place(&lab, host)).collect::<anyhow::Result<_>>()?;
    let everywhere: Vec<&Namespace> = places.iter().collect();
    let id = &ids[0];
    for _ in 0..options.network_rounds.max(3) {
        let watch = Watch::start(skep, &everywhere, replicas + 1, &[])?;
        scale(&mut api, id, replicas + 1)?;
        let known = watch.last()?;
        api.await_running(id, usize::try_from(replicas + 1)?, |_| true)?;
        let tasks = api.tasks(id)?;
        let moments = tasks.iter().filter_map(|t| t["Status"]["Timestamp"].as_str()).map(in_day_ms);
        let running = moments.collect::<anyhow::Result<Vec<f64>>>()?.into_iter().fold(0.0, f64::max);
        put("backend_more_known_everywhere_ms", known % DAY_MS - running);
        let watch = Watch::start(skep, &everywhere, replicas, &[])?;
        let asked = scale(&mut api, id, replicas)?;
        put("backend_less_known_everywhere_ms", watch.last()? - asked);
        api.until(|api| {
            Ok(api.tasks(id)?.iter().filter(|t| t["Status"]["State"] == "running").count() as u64 == replicas)
        })?;
    }
    faults(&lab, &mut api, id, &everywhere, replicas, &mut put)
}

/// A container of that host to ask in, which no fault makes the swarm take away.
fn place(lab: &Lab, host: usize) -> anyhow::Result<Namespace> {
    let mut api = lab.api(host)?;
    let spec = json!({
        "Image": IMAGE,
        "Cmd": ["/bin/sleep", "100000"],
        "HostConfig": { "NetworkMode": "spread" },
    });
    let made = api.call("POST", "/containers/create", Some(&spec))?;
    let id = made["Id"].as_str().context("no container")?;
    api.call("POST", &format!("/containers/{id}/start"), None)?;
    Namespace::of_container(lab, host, id)
}

fn node_id(api: &mut Api, name: &str) -> anyhow::Result<Value> {
    let nodes = api.call("GET", "/nodes", None)?;
    let node = nodes.as_array().into_iter().flatten().find(|n| n["Description"]["Hostname"] == name);
    Ok(node.context("no node")?["ID"].clone())
}

/// Addresses of service 0's tasks on a host.
fn addresses_on(api: &mut Api, id: &str, host: &str) -> anyhow::Result<Vec<String>> {
    let node = node_id(api, host)?;
    let tasks = api.tasks(id)?;
    let there = tasks.iter().filter(|t| t["NodeID"] == node && t["Status"]["State"] == "running");
    let address = |t: &Value| Some(t["NetworksAttachments"][0]["Addresses"][0].as_str()?.split('/').next()?.to_owned());
    let found: Vec<String> = there.filter_map(address).collect();
    if found.is_empty() {
        bail!("no task of the service is on {host}");
    }
    Ok(found)
}

/// Seconds from a fault, or its end, until the names are right on every host that is reached.
fn faults(
    lab: &Lab,
    api: &mut Api,
    id: &str,
    places: &[&Namespace],
    replicas: u64,
    put: &mut impl FnMut(&str, f64),
) -> anyhow::Result<()> {
    let (dies, cut) = (lab.hosts[1].name.as_str(), lab.hosts[2].name.as_str());
    let gone = addresses_on(api, id, dies)?;
    let watch = Watch::start(lab.skep, &[places[0], places[2]], 0, &gone)?;
    let begun = now_ms()?;
    lab.run("kill", &[dies])?;
    put("host_killed_names_right_s", (watch.last().context("where a host is killed")? - begun) / 1e3);
    let dead = node_id(api, dies)?;
    api.await_running(id, usize::try_from(replicas)?, |t| t["NodeID"] != dead)?;
    lab.run("start", &[dies])?;
    let gone = addresses_on(api, id, cut)?;
    let watch = Watch::start(lab.skep, &places[..1], 0, &gone)?;
    let begun = now_ms()?;
    lab.run("partition", &[cut])?;
    put("host_cut_off_names_right_s", (watch.last().context("where a host is cut off")? - begun) / 1e3);
    // Meanwhile something changes that it is to know when it is back.
    let node = node_id(api, cut)?;
    scale(api, id, replicas + 1)?;
    api.await_running(id, usize::try_from(replicas + 1)?, |t| t["NodeID"] != node)?;
    let watch = Watch::start(lab.skep, &places[2..], replicas + 1, &[])?;
    let begun = now_ms()?;
    lab.run("heal", &[])?;
    put("host_back_names_right_s", (watch.last().context("where a host is back")? - begun) / 1e3);
    Ok(())
}
