//! The scheduler alone, from the benchmark of the crate `control`: no daemon, no peer on this machine. swarmkit's times were
//! taken with its own scheduler in memory on a machine of the same kind, and are recorded in the benchmark.

use std::process::Command;

use anyhow::{Context, bail};
use serde_json::Value;

pub(super) fn measure() -> anyhow::Result<()> {
    let output = Command::new(env!("CARGO"))
        .args(["bench", "--quiet", "--locked", "--package", "skep-control", "--bench", "scheduler"])
        .output()
        .context("cargo bench")?;
    if !output.status.success() {
        bail!("the scheduler's benchmark: {}", String::from_utf8_lossy(&output.stderr));
    }
    println!("\n{:<44} {:>10} {:>10} {:>8}", "scheduler, seconds", "skep", "swarmkit", "ratio");
    for line in String::from_utf8(output.stdout)?.lines().filter(|l| l.starts_with('{')) {
        let case: Value = serde_json::from_str(line)?;
        let number = |key: &str| case[key].as_f64().unwrap_or(f64::NAN);
        let name = format!("{} tasks of {} services on {} nodes", case["tasks"], case["services"], case["nodes"]);
        let (ours, theirs) = (number("ms") / 1000.0, number("swarmkit_ms") / 1000.0);
        println!("{name:<44} {ours:>10.3} {theirs:>10.3} {:>8.3}", ours / theirs);
    }
    Ok(())
}
