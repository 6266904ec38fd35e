//! The supervisor and the init alone, for this crate's tests: the product's are `skep supervisor` and `skep init`.

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    match words.next().as_deref() {
        Some("supervisor") => skep_engine::supervisor::main(words),
        Some("init") => skep_engine::init::main(words),
        _ => ExitCode::from(2),
    }
}
