//! `cargo xtask sim`: the simulator, built to run fast, with all cores.

use std::process::Command;

use anyhow::{Context, bail};

/// Arguments go to the simulator as they are: see `cargo xtask sim --help`.
pub(crate) fn run(arguments: &[String]) -> anyhow::Result<()> {
    let status = Command::new(env!("CARGO"))
        .args(["run", "--quiet", "--locked", "--profile", "sim", "--package", "skep-sim", "--"])
        .args(arguments)
        .status()
        .context("cargo run --package skep-sim")?;
    if !status.success() {
        bail!("the simulation failed");
    }
    Ok(())
}
