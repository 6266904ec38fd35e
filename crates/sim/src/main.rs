//! `cargo xtask sim`: many seeds on all cores, or one with everything that happened.

use std::io::Write;
use std::panic::catch_unwind;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use skep_sim::{LogKind, Options, Outcome, run};

#[derive(Parser)]
#[command(name = "cargo xtask sim", about = "Run the control plane through simulated bad days")]
struct Arguments {
    /// How many seeds to try
    #[arg(long, default_value_t = 200)]
    seeds: u64,
    /// The first of them
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Only this one
    #[arg(long, conflicts_with_all = ["seeds", "from"])]
    seed: Option<u64>,
    /// Print everything that happens (with --seed)
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Only this script (tests/golden); prints it with the story that follows
    #[arg(long, conflicts_with_all = ["seeds", "from", "seed"])]
    play: Option<std::path::PathBuf>,
    /// A model of the log in place of the real consensus: many more seeds in the same time
    #[arg(long)]
    model: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let log = if arguments.model { LogKind::Model } else { LogKind::Consensus };
    if let Some(script) = arguments.play {
        return play(&script);
    }
    match arguments.seed {
        Some(seed) => one(Options { seed, log, trace: arguments.trace }),
        None => many(arguments.from, arguments.seeds, log),
    }
}

fn play(script: &std::path::Path) -> ExitCode {
    let text = std::fs::read_to_string(script).map_err(|error| error.to_string());
    match text.and_then(|text| skep_sim::play(&text)) {
        Ok(story) => {
            print!("{story}");
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("{}: {why}", script.display());
            ExitCode::FAILURE
        }
    }
}

fn one(options: Options) -> ExitCode {
    let (seed, outcome) = (options.seed, run(options));
    let mut out = std::io::stdout().lock();
    for line in &outcome.trace {
        // Whoever reads may have seen enough.
        if writeln!(out, "{line}").is_err() {
            break;
        }
    }
    let Outcome { hash, entries, acknowledged, simulated, .. } = outcome;
    println!(
        "seed {seed}: {:.1} s simulated, {entries} log entries, {acknowledged} acknowledged requests, trace {hash:016x}",
        simulated.as_secs_f64()
    );
    match outcome.violation {
        None => ExitCode::SUCCESS,
        Some(violation) => {
            println!("seed {seed} FAILED: {violation}");
            ExitCode::FAILURE
        }
    }
}

#[derive(Default)]
struct Total {
    done: u64,
    entries: u64,
    acknowledged: u64,
    simulated: Duration,
    failed: Vec<u64>,
}

fn many(from: u64, seeds: u64, log: LogKind) -> ExitCode {
    let (next, total, began) = (AtomicU64::new(from), Mutex::new(Total::default()), Instant::now());
    let end = from.saturating_add(seeds);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        return;
                    }
                    let outcome = catch_unwind(|| run(Options { seed, log, trace: false }));
                    note(&total, seed, log, outcome.ok(), seeds, began);
                }
            });
        }
    });
    let total = total.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    let Total { done, entries, acknowledged, simulated, mut failed } = total;
    let (hours, took) = (simulated.as_secs_f64() / 3600.0, began.elapsed().as_secs_f64());
    println!(
        "{done} seeds from {from} in {took:.0} s: {hours:.1} simulated hours, {entries} log entries, {acknowledged} acknowledged requests"
    );
    failed.sort_unstable();
    if failed.is_empty() {
        println!("every invariant held");
        return ExitCode::SUCCESS;
    }
    println!("{} seeds failed: {failed:?}", failed.len());
    ExitCode::FAILURE
}

/// `None`: it panicked, and said so.
fn note(total: &Mutex<Total>, seed: u64, log: LogKind, outcome: Option<Outcome>, seeds: u64, began: Instant) {
    let mut total = total.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    total.done += 1;
    let violation = match outcome {
        None => Some("it panicked".to_owned()),
        Some(outcome) => {
            total.entries += outcome.entries;
            total.acknowledged += outcome.acknowledged;
            total.simulated += outcome.simulated;
            outcome.violation
        }
    };
    if let Some(violation) = violation {
        let model = if log == LogKind::Model { " --model" } else { "" };
        println!("seed {seed} FAILED: {violation}\n  replay: cargo xtask sim --seed {seed} --trace{model}");
        total.failed.push(seed);
    }
    if total.done.is_multiple_of(500) {
        let took = began.elapsed().as_secs();
        eprintln!("{} of {seeds} seeds after {took} s, {} failed", total.done, total.failed.len());
    }
}
