//! Every fuzz target without a fuzzer: its committed corpus, and some thousand inputs that a seed makes.
//!
//! An input is a part of the corpus with changes, or random bytes. The seed is always the same, or the one in
//! `TIDEVM_SEED`, is printed; a failing input is printed in full, and replays as a file of the corpus.

mod mutate;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;

use mutate::Mutator;
use tidevm_fuzz::TARGETS;

/// Most bytes of a corpus.
const MOST: u64 = 100 << 10;

fn folder(target: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "corpus", target].iter().collect()
}

/// The inputs of a corpus, by name.
fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let entries =
        fs::read_dir(folder(target)).unwrap_or_else(|error| panic!("the corpus of {target}: {error}"));
    let mut inputs: Vec<_> = entries
        .map(|entry| {
            let entry = entry.expect("a readable entry");
            let name = entry.file_name().to_string_lossy().into_owned();
            (name, fs::read(entry.path()).expect("a readable input"))
        })
        .collect();
    inputs.sort();
    inputs
}

/// The same inputs in every run: a fuzzer looks for new ones.
const SEED: u64 = 1;

fn seed() -> u64 {
    match std::env::var("TIDEVM_SEED") {
        Ok(seed) => seed.parse().expect("TIDEVM_SEED is a number"),
        Err(_) => SEED,
    }
}

/// Runs one input and prints it when it fails.
fn run(check: fn(&[u8]), name: &str, input: &[u8]) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| check(input))) {
        println!("{name} fails; as hexadecimal: {}", hex(input));
        resume_unwind(panic);
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The corpus of `target`, then `count` inputs of at most `longest` bytes.
fn replay(target: &str, count: u32, longest: usize) {
    let check = TARGETS.iter().find(|known| known.name == target).expect("a target").check;
    let corpus = corpus(target);
    assert!(!corpus.is_empty(), "{target} has no corpus");
    for (name, input) in &corpus {
        run(check, name, input);
    }
    let seed = seed();
    println!("{target}: TIDEVM_SEED={seed}");
    let mut mutator = Mutator::new(seed, longest, corpus.into_iter().map(|(_, input)| input).collect());
    for number in 0..count {
        let input = mutator.next();
        run(check, &format!("{target}, input {number} of TIDEVM_SEED={seed}"), &input);
    }
}

#[test]
fn device() {
    replay("device", 4000, 600);
}

#[test]
fn registers() {
    replay("registers", 4000, 600);
}

#[test]
fn chains() {
    replay("chains", 3000, 600);
}

#[test]
fn records() {
    replay("records", 3000, 2500);
}

#[test]
fn script() {
    replay("script", 4000, 1000);
}

#[test]
fn http() {
    replay("http", 4000, 1500);
}

#[test]
fn kernel() {
    replay("kernel", 3000, 8000);
}

#[test]
fn mm() {
    replay("mm", 300, 200);
}

#[test]
fn corpora_are_small() {
    for target in TARGETS {
        let size: u64 = corpus(target.name).iter().map(|(_, input)| input.len() as u64).sum();
        assert!(size < MOST, "the corpus of {} has {size} bytes, {MOST} are the most", target.name);
    }
}
