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
    consensus_0_and_1: Consensus 0..2;
    consensus_2_and_3: Consensus 2..4;
    consensus_4_and_5: Consensus 4..6;
    consensus_6_and_7: Consensus 6..8;
    consensus_8_and_9: Consensus 8..10;
    consensus_10_and_11: Consensus 10..12;
    consensus_12_and_13: Consensus 12..14;
    consensus_14_and_15: Consensus 14..16;
    consensus_16_and_17: Consensus 16..18;
    consensus_18_and_19: Consensus 18..20;
    model_20_to_34: Model 20..35;
    model_35_to_49: Model 35..50;
    model_50_to_64: Model 50..65;
    model_65_to_79: Model 65..80;
    model_80_to_94: Model 80..95;
    model_95_to_109: Model 95..110;
    model_110_to_124: Model 110..125;
    model_125_to_139: Model 125..140;
    model_140_to_154: Model 140..155;
    model_155_to_169: Model 155..170;
    model_170_to_184: Model 170..185;
    model_185_to_199: Model 185..200;
}

#[test]
fn a_seed_is_a_history() {
    let hash = |seed, log| run(Options { seed, log, trace: false }).hash;
    assert_eq!(hash(5, LogKind::Model), hash(5, LogKind::Model));
    assert_ne!(hash(5, LogKind::Model), hash(6, LogKind::Model));
}

#[test]
fn a_seed_is_a_history_with_the_real_consensus() {
    let hash = |seed| run(Options { seed, log: LogKind::Consensus, trace: false }).hash;
    assert_eq!(hash(5), hash(5));
}
