//! Two hundred bad days, and that each can be had again. Split, so that they are tried side by side.

use std::ops::Range;

use skep_sim::{LogKind, Options, run};

fn every(seeds: Range<u64>, log: LogKind) {
    let model = if log == LogKind::Model { " --model" } else { "" };
    for seed in seeds {
        let outcome = run(Options { seed, log, trace: false });
        if let Some(violation) = outcome.violation {
            panic!("seed {seed}: {violation}\n  replay: cargo xtask sim --seed {seed} --trace{model}");
        }
    }
}

macro_rules! seeds {
    ($($name:ident: $log:ident $seeds:expr;)*) => {
        $(#[test] fn $name() { every($seeds, LogKind::$log); })*
    };
}

seeds! {
    consensus_0_to_9: Consensus 0..10;
    consensus_10_to_19: Consensus 10..20;
    consensus_20_to_29: Consensus 20..30;
    consensus_30_to_39: Consensus 30..40;
    model_40_to_79: Model 40..80;
    model_80_to_119: Model 80..120;
    model_120_to_159: Model 120..160;
    model_160_to_199: Model 160..200;
}

#[test]
fn a_seed_is_a_history() {
    for log in [LogKind::Model, LogKind::Consensus] {
        let hash = |seed| run(Options { seed, log, trace: false }).hash;
        assert_eq!(hash(5), hash(5), "{log:?}");
        assert_ne!(hash(5), hash(6), "{log:?}");
    }
}
