//! The process that is the parent of all containers.

use std::path::Path;

/// Entry of `skep supervisor --exec-root X [--resume FD]`; never returns while there is something to watch.
pub fn main(args: impl Iterator<Item = String>) -> std::process::ExitCode {
    let _ = (args, Path::new(""));
    unimplemented!()
}
