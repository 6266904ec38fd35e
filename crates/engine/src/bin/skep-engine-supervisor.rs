//! The supervisor alone, for this crate's tests: the product's is `skep supervisor`.

use std::process::ExitCode;

fn main() -> ExitCode {
    skep_engine::supervisor::main(std::env::args().skip(1).skip_while(|word| word == "supervisor"))
}
