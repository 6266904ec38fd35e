//! A container's whole life in numbers; the bar is kept by `cargo xtask bench`, on a release build and a quiet machine.

use skep_engine::bench::{cycles, median};

use crate::host::Host;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_comes_and_goes_quickly() {
    let host = Host::new().await;
    cycles(&host.engine, "busybox", &["true"], 2).await.unwrap();
    let lives = cycles(&host.engine, "busybox", &["true"], 20).await.unwrap();
    let of = |phase: fn(&skep_engine::bench::Cycle) -> std::time::Duration| median(lives.iter().map(phase));
    let total = of(|c| c.total());
    eprintln!(
        "create {:?}, start {:?}, wait {:?}, remove {:?}, all {total:?}",
        of(|c| c.create),
        of(|c| c.start),
        of(|c| c.wait),
        of(|c| c.remove)
    );
    // Unoptimised and beside other tests: only what a forgotten timeout or sync would cost is caught here.
    assert!(total < std::time::Duration::from_millis(500), "{total:?}");
}
