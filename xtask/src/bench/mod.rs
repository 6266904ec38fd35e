//! The same operations on skep and on real dockerd, in one run, on the same kind of lab; the ratio is what counts, since
//! absolute times on a shared machine mean little.
//!
//! Each time is from sending the request until the state is seen by polling `/tasks` every 10 ms.

mod api;
mod cluster;
mod drops;
mod lab;
mod network;
mod overlays;
mod scheduler;
mod services;
mod soak;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use services::ImageTar;

#[derive(Clone, Copy, PartialEq, clap::ValueEnum)]
enum Part {
    /// A container's life inside the engine
    Engine,
    /// Services on one manager and two workers
    Services,
    /// Three managers: leaders and hosts killed, writes, reads, a restart with 10,000 tasks
    Cluster,
    /// Requests lost in updates, scaling down and drain, at 1,000 a second; skep only
    Drops,
    /// One TCP stream over a plain and an encrypted overlay; skep only, needs iperf3
    Overlays,
    /// Paths of a request by what they cost, changes until every host knows them; skep only, needs wrk, nginx, haproxy and iperf3
    Network,
    /// The scheduler alone: tasks placed in memory, against swarmkit's recorded times
    Scheduler,
    /// Nodes wrongly taken for dead, idle and under packet loss; takes twice --minutes
    Soak,
}

#[derive(clap::Args)]
pub(crate) struct Options {
    /// What to measure; all but the soak if nothing is named
    #[arg(value_enum)]
    parts: Vec<Part>,
    /// Replica counts for create and remove
    #[arg(long, default_value = "1,10,50", value_delimiter = ',')]
    sizes: Vec<u64>,
    /// The peer's daemon; left out of the run if it is not installed
    #[arg(long, default_value = "dockerd")]
    peer: String,
    /// Rounds of the services part on each side, interleaved; the median is printed
    #[arg(long, default_value_t = 1)]
    rounds: usize,
    /// How often the cluster part kills a leader and a host of skep's; the peer, which takes long, has three of each
    #[arg(long, default_value_t = 20)]
    kills: usize,
    /// Length of each half of the soak
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// Rounds of the network part
    #[arg(long, default_value_t = 7)]
    network_rounds: usize,
    /// How long the network part sends by each way in a round
    #[arg(long, default_value_t = 3)]
    network_seconds: u64,
    /// Containers on each host when the network part asks how fast a change is known
    #[arg(long, default_value_t = 100)]
    containers: u64,
    /// skep only
    #[arg(long)]
    alone: bool,
}

/// Metric -> value of each round.
type Figures = BTreeMap<String, Vec<f64>>;

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let wanted = |part| if options.parts.is_empty() { part != Part::Soak } else { options.parts.contains(&part) };
    if wanted(Part::Scheduler) {
        scheduler::measure()?;
        if options.parts == [Part::Scheduler] {
            return Ok(());
        }
    }
    let skep = skep_binary()?;
    let peer = Some(options.peer.as_str()).filter(|peer| {
        !options.alone && Command::new(peer).arg("--version").output().is_ok_and(|o| o.status.success())
    });
    let (mut ours, mut theirs) = (Figures::new(), Figures::new());
    let tar = ImageTar::make()?;
    if wanted(Part::Engine) {
        engine(&skep, &tar, &mut ours)?;
    }
    if wanted(Part::Services) {
        for _ in 0..options.rounds {
            services::measure(&skep, "bench", None, options, &tar, &mut ours)?;
            if peer.is_some() {
                services::measure(&skep, "peer", peer, options, &tar, &mut theirs)?;
            }
        }
    }
    if wanted(Part::Cluster) {
        cluster::measure(&skep, "bench", None, options.kills, &tar, &mut ours)?;
        cluster::restart(&skep, &mut ours)?;
        if peer.is_some() {
            cluster::measure(&skep, "peer", peer, options.kills.min(3), &tar, &mut theirs)?;
        }
    }
    if wanted(Part::Drops) {
        drops::measure(&skep, &mut ours)?;
    }
    if wanted(Part::Overlays) {
        overlays::measure(&skep, &tar, &mut ours)?;
    }
    if wanted(Part::Network) {
        network::measure(&skep, options, &tar, &mut ours)?;
    }
    if wanted(Part::Soak) {
        soak::measure(&skep, options.minutes, &mut ours)?;
    }
    print(&ours, &theirs);
    if peer.is_none() {
        println!("\n{} is not installed or not wanted: no peer in this run", options.peer);
    }
    Ok(())
}

fn skep_binary() -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os("SKEP_BIN") {
        return Ok(path.into());
    }
    let status = Command::new(env!("CARGO")).args(["build", "--release", "--locked", "--package", "skep"]).status()?;
    if !status.success() {
        bail!("skep does not build");
    }
    let metadata = cargo_metadata::MetadataCommand::new().no_deps().exec()?;
    let target = metadata.target_directory.into_std_path_buf();
    let mut candidates: Vec<PathBuf> = std::fs::read_dir(&target)?
        .flatten()
        .map(|e| e.path().join("release/skep"))
        .chain([target.join("release/skep")])
        .filter(|p| p.exists())
        .collect();
    candidates.sort_by_key(|p| std::fs::metadata(p).and_then(|m| m.modified()).ok());
    candidates.pop().context("no skep binary in the target folder")
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn print(ours: &Figures, theirs: &Figures) {
    println!("\n{:<46} {:>10} {:>10} {:>8}", "", "skep", "dockerd", "ratio");
    for (name, values) in ours {
        let mine = median(values);
        match theirs.get(name).map(|v| median(v)) {
            Some(peer) => println!("{name:<46} {mine:>10.3} {peer:>10.3} {:>8.2}", mine / peer),
            None => println!("{name:<46} {mine:>10.3}"),
        }
    }
}

/// Containers inside the engine, without API or swarm: `skep bench-engine` prints milliseconds.
fn engine(skep: &Path, tar: &ImageTar, figures: &mut Figures) -> anyhow::Result<()> {
    let output = Command::new(skep)
        .args(["bench-engine", "--rounds", "50", "--image-tar"])
        .arg(&tar.0)
        .output()
        .context("skep bench-engine")?;
    if !output.status.success() {
        bail!("skep bench-engine: {}", String::from_utf8_lossy(&output.stderr));
    }
    for line in String::from_utf8(output.stdout)?.lines() {
        if let Some((name, value)) = line.split_once(' ') {
            figures.entry(name.to_owned()).or_default().push(value.trim().parse()?);
        }
    }
    Ok(())
}
