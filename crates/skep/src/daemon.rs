use crate::args::DaemonFlags;
use std::process::ExitCode;
pub fn run(_flags: DaemonFlags) -> anyhow::Result<ExitCode> {
    anyhow::bail!("not wired")
}
pub fn supervise(_e: &std::path::Path) -> anyhow::Result<ExitCode> {
    anyhow::bail!("not wired")
}
