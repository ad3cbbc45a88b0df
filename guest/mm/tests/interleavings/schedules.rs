//! Runs a model in many schedules, or until one fails.
//!
//! Schedules come in groups. A group is named by its scheduler and a seed, so `TIDEVM_SCHEDULES=pct:7` runs just the
//! group that failed.
//!
//! Invariant: the same group has the same schedules, on every host.

use std::env;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::{Config, FailurePersistence, Runner};
use tidevm_mm::hosted::model::{Variant, choose, reset};

/// Schedules of one group.
const GROUP: usize = 50;

/// Groups of each scheduler that a model must hold in, or in which a broken variant must fail: 3,000 schedules.
const GROUPS: u64 = 30;

/// Changes of priority in a schedule of PCT: it finds faults that need this many orders between steps of two CPUs.
const DEPTH: usize = 3;

/// The environment variable that chooses one group.
const CHOICE: &str = "TIDEVM_SCHEDULES";

#[derive(Clone, Copy)]
enum Group {
    Random(u64),
    Pct(u64),
}

impl Group {
    fn all() -> impl Iterator<Item = Self> {
        (1..=GROUPS).flat_map(|seed| [Self::Random(seed), Self::Pct(seed)])
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Random(seed) => write!(f, "random:{seed}"),
            Self::Pct(seed) => write!(f, "pct:{seed}"),
        }
    }
}

impl FromStr for Group {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once(':').and_then(|(kind, seed)| Some((kind, seed.parse().ok()?)));
        match parts {
            Some(("random", seed)) => Ok(Self::Random(seed)),
            Some(("pct", seed)) => Ok(Self::Pct(seed)),
            _ => Err(format!("{CHOICE} is {text:?}: use random:SEED or pct:SEED")),
        }
    }
}

/// Bytes of a thread's stack: a debug build makes the lists of a CPU there before it puts them on the heap.
const STACK: usize = 256 << 10;

/// Runs `model` in the schedules of `group`, up to the first that panics. Returns the number of schedules that did
/// not, and the panic.
fn run(
    group: Group,
    model: &Arc<dyn Fn() + Send + Sync>,
) -> (u32, Result<(), Box<dyn std::any::Any + Send>>) {
    let mut config = Config::new();
    config.failure_persistence = FailurePersistence::None;
    config.silence_warnings = true;
    config.stack_size = STACK;
    let passed = Arc::new(AtomicU32::new(0));
    let (model, count) = (model.clone(), passed.clone());
    let schedule = move || {
        reset();
        model();
        count.fetch_add(1, SeqCst);
    };
    let result = catch_unwind(AssertUnwindSafe(|| {
        match group {
            Group::Random(seed) => {
                Runner::new(RandomScheduler::new_from_seed(seed, GROUP), config).run(schedule)
            }
            Group::Pct(seed) => {
                Runner::new(PctScheduler::new_from_seed(seed, DEPTH, GROUP), config).run(schedule)
            }
        };
    }));
    (passed.load(SeqCst), result)
}

/// No schedule breaks `model`.
pub fn holds(model: impl Fn() + Send + Sync + 'static) {
    choose(None);
    let model: Arc<dyn Fn() + Send + Sync> = Arc::new(model);
    let chosen = env::var(CHOICE).ok().map(|text| text.parse().unwrap_or_else(|error| panic!("{error}")));
    let groups: Vec<Group> = chosen.map_or_else(|| Group::all().collect(), |group| vec![group]);
    let mut schedules = 0;
    for group in groups {
        let (passed, result) = run(group, &model);
        schedules += passed;
        if let Err(panic) = result {
            let test = std::thread::current().name().unwrap_or_default().to_owned();
            eprintln!(
                "schedule {passed} of group {group} fails. To run the group again: {CHOICE}={group} \
                 cargo test -p tidevm-mm --profile models --features shuttle --test interleavings -- {test}"
            );
            resume_unwind(panic);
        }
    }
    println!("{schedules} schedules hold");
}

/// Some schedule breaks `model` if the code is `variant`, with a panic that says one of `messages`.
pub fn fails(
    variant: impl Into<Option<Variant>>,
    messages: &[&str],
    model: impl Fn() + Send + Sync + 'static,
) {
    let variant = variant.into();
    let model: Arc<dyn Fn() + Send + Sync> = Arc::new(model);
    let mut schedules = 0;
    choose(variant);
    for group in Group::all() {
        let (passed, result) = run(group, &model);
        schedules += passed;
        if let Err(panic) = result {
            choose(None);
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned()));
            let text = text.unwrap_or_default();
            assert!(
                messages.iter().any(|message| text.contains(message)),
                "{variant:?} fails otherwise: {text}"
            );
            println!("{variant:?} fails after {schedules} schedules, in group {group}: {text}");
            return;
        }
    }
    choose(None);
    panic!("{variant:?} holds in all of {schedules} schedules");
}
