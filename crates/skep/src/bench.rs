//! `skep bench-engine`: what a container costs inside the engine, without API or swarm, as `cargo xtask bench` wants it.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use nix::sched::{CloneFlags, unshare};
use skep_engine::bench::{Cycle, cycles, median};
use skep_engine::image::ImportOptions;
use skep_engine::{Engine, EngineConfig};
use skep_net::{Net, NetConfig};
use skep_node::NetSandboxes;

const IMAGE: &str = "bench:latest";
/// The first containers pay for what is compiled and mapped once.
const WARM_UP: usize = 3;

/// Prints one line a figure, `name milliseconds`: medians over `rounds` containers that run `true`.
pub(crate) fn run(image_tar: &std::path::Path, rounds: usize) -> anyhow::Result<ExitCode> {
    // A network namespace of its own, so that no bridge appears on this machine; nothing else runs yet in this process.
    unshare(CloneFlags::CLONE_NEWNET).context("cannot leave the network namespace")?;
    let root = PathBuf::from(format!("/run/skep-bench-{}", std::process::id()));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let result = runtime.block_on(measure(&root, image_tar, rounds));
    let _ = std::fs::remove_dir_all(&root);
    result.map(|()| ExitCode::SUCCESS)
}

async fn measure(root: &std::path::Path, image_tar: &std::path::Path, rounds: usize) -> anyhow::Result<()> {
    let (data_root, exec_root) = (root.join("data"), root.join("exec"));
    for folder in [&data_root, &exec_root] {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let tag = format!("{:04x}", std::process::id() & 0xffff);
    let net = Net::open(NetConfig::new(&data_root, &exec_root, &tag, skep_node::answer)).await?;
    let config = EngineConfig::new(&data_root, &exec_root, &tag);
    let engine = Engine::open(config, Arc::new(NetSandboxes::new(net.clone()))).await?;
    let tar = std::fs::read(image_tar).with_context(|| format!("cannot read {}", image_tar.display()))?;
    let body = futures_util::stream::once(std::future::ready(Ok(bytes::Bytes::from(tar))));
    let options = ImportOptions { reference: Some(IMAGE.to_owned()), ..ImportOptions::default() };
    engine.images().import(Box::pin(body), options).await?;
    cycles(&engine, IMAGE, &["/bin/true"], WARM_UP).await?;
    let lives = cycles(&engine, IMAGE, &["/bin/true"], rounds).await?;
    let print = |name: &str, phase: fn(&Cycle) -> Duration| {
        println!("{name} {:.2}", median(lives.iter().map(phase)).as_secs_f64() * 1e3);
    };
    print("engine_create_ms", |c| c.create);
    print("engine_start_ms", |c| c.start);
    print("engine_wait_ms", |c| c.wait);
    print("engine_remove_ms", |c| c.remove);
    print("engine_container_ms", Cycle::total);
    engine.close().await;
    net.close().await;
    end_supervisor(&exec_root);
    Ok(())
}

/// The supervisor outlives a daemon; here nothing is left for it to hold.
fn end_supervisor(exec_root: &std::path::Path) {
    let root = exec_root.to_string_lossy();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let mut words = line.split(|byte| *byte == 0);
        if pid != std::process::id().cast_signed() && words.any(|word| word == root.as_bytes()) {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
    }
}
