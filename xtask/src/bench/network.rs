//! The network against what it stands beside: paths of a request by how many of them a second of processor time carries (that
//! of client, server and proxy together, which a busy machine changes little), in rounds that take every path in turn.
//!
//! Docker's own mesh needs IPVS, which this kernel lacks: its way is built by hand with nft, as Docker's rules lead a packet
//! (host, ingress namespace with both translations, a VXLAN made by hand, task). haproxy, nginx, wrk and iperf3 are Debian's.

mod load;
mod paths;
mod spread;

use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};

use super::Figures;
use super::services::ImageTar;

/// Milliseconds and counts that `skep bench-network` prints.
fn alone(skep: &Path, arguments: &[&str], out: &mut Figures) -> anyhow::Result<()> {
    let output = Command::new(skep).arg("bench-network").args(arguments).output().context("skep bench-network")?;
    if !output.status.success() {
        bail!("skep bench-network: {}", String::from_utf8_lossy(&output.stderr));
    }
    for line in String::from_utf8(output.stdout)?.lines() {
        let (name, value) = line.split_once(' ').context("a figure")?;
        out.entry(name.to_owned()).or_default().push(value.parse()?);
    }
    Ok(())
}

pub(super) fn measure(skep: &Path, options: &super::Options, tar: &ImageTar, out: &mut Figures) -> anyhow::Result<()> {
    for _ in 0..options.network_rounds {
        alone(skep, &["services"], out)?;
    }
    alone(skep, &["swaps"], out)?;
    alone(skep, &["swaps", "--mesh"], out)?;
    paths::measure(skep, options, tar, out)?;
    spread::measure(skep, options, tar, out)
}
