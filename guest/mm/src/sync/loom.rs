//! Atomics that lie in plain memory, each with a word of loom's that stands for it.
//!
//! Loom explores weak memory orderings, but its atomics are objects of its own, and those of this crate lie in tables,
//! statics and zeroed memory. So in a model each access goes to a [`Shadow`], which is found by the atomic's address. It
//! begins with the value in memory, and memory itself never changes: every execution begins in the same state.
//!
//! Differs from loom's atomics on purpose: a failed swap of a flag that is set writes nothing (see `swap`).
//!
//! Invariants: all words of a model are made before its threads, as loom demands. Outside of an execution an access
//! goes to memory.

use core::sync::atomic::{self as core_atomic, Ordering};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::vec::Vec;

use loom::sync::atomic::AtomicU64 as Word;

/// Stands for an atomic in memory. The word holds the difference to the initial value, because the word is older than
/// the knowledge of that value.
struct Shadow {
    word: Word,
    initial: u64,
}

impl Shadow {
    fn encode(&self, value: u64) -> u64 {
        value.wrapping_sub(self.initial)
    }

    fn decode(&self, word: u64) -> u64 {
        word.wrapping_add(self.initial)
    }

    fn load(&self, order: Ordering) -> u64 {
        self.decode(self.word.load(order))
    }

    fn store(&self, value: u64, order: Ordering) {
        self.word.store(self.encode(value), order);
    }

    fn fetch_add(&self, value: u64, order: Ordering) -> u64 {
        self.decode(self.word.fetch_add(value, order))
    }

    fn fetch_sub(&self, value: u64, order: Ordering) -> u64 {
        self.decode(self.word.fetch_sub(value, order))
    }

    fn fetch_max(&self, value: u64, order: Ordering) -> u64 {
        let change = |now: u64| Some(now.max(value));
        self.update(order, order_of_load(order), change).unwrap_or_else(|now| now)
    }

    fn fetch_or(&self, value: u64, order: Ordering) -> u64 {
        let change = |now: u64| Some(now | value);
        self.update(order, order_of_load(order), change).unwrap_or_else(|now| now)
    }

    fn compare_exchange(
        &self,
        now: u64,
        then: u64,
        success: Ordering,
        failure: Ordering,
    ) -> Result<u64, u64> {
        let result = self.word.compare_exchange(self.encode(now), self.encode(then), success, failure);
        result.map(|before| self.decode(before)).map_err(|other| self.decode(other))
    }

    fn update(
        &self,
        success: Ordering,
        failure: Ordering,
        mut update: impl FnMut(u64) -> Option<u64>,
    ) -> Result<u64, u64> {
        let mut now = self.load(failure);
        while let Some(then) = update(now) {
            match self.compare_exchange(now, then, success, failure) {
                Ok(before) => return Ok(before),
                Err(other) => now = other,
            }
        }
        Err(now)
    }
}

/// The shadows of one execution.
struct Execution {
    /// Changed before every access, so that any two of them are in conflict. Loom remembers one access per word: a
    /// thread that loads a word and then stores to it would hide an earlier load by another thread, and loom would not
    /// try the store first.
    point: Rc<Word>,
    spare: Vec<Word>,
    shadows: BTreeMap<usize, Rc<Shadow>>,
}

std::thread_local! {
    /// Loom runs all threads of a model on one thread of the host.
    static EXECUTION: RefCell<Option<Execution>> = const { RefCell::new(None) };
}

/// Whether a model runs, and its threads can be asked for.
pub(crate) fn in_model() -> bool {
    !std::thread::panicking() && EXECUTION.with_borrow(Option::is_some)
}

/// Begins an execution, whose threads access `words` atomics at most.
#[cfg(test)]
pub(crate) fn begin(words: usize) {
    let spare = (0..words).map(|_| Word::new(0)).collect();
    let point = Rc::new(Word::new(0));
    EXECUTION.set(Some(Execution { point, spare, shadows: BTreeMap::new() }));
}

/// Ends the execution, if one has begun: accesses go to memory again.
#[cfg(test)]
pub(crate) fn end() {
    EXECUTION.set(None);
}

/// The shadow of the atomic at `address`, whose value is `initial`; none outside of a model. Any other thread may run
/// first.
fn shadow(address: usize, initial: impl FnOnce() -> u64) -> Option<Rc<Shadow>> {
    if std::thread::panicking() {
        return None;
    }
    let (point, shadow) = EXECUTION.with_borrow_mut(|execution| {
        let Execution { point, spare, shadows } = execution.as_mut()?;
        if let Some(shadow) = shadows.get(&address) {
            return Some((point.clone(), shadow.clone()));
        }
        let word = spare.pop().expect("a model accesses more atomics than it has words for");
        let shadow = Rc::new(Shadow { word, initial: initial() });
        shadows.insert(address, shadow.clone());
        Some((point.clone(), shadow))
    })?;
    // Relaxed, so that it orders nothing.
    point.fetch_add(1, Ordering::Relaxed);
    Some(shadow)
}

/// A fence: loom's in a model, the machine's otherwise.
pub(crate) fn fence(order: Ordering) {
    if in_model() { loom::sync::atomic::fence(order) } else { core_atomic::fence(order) }
}

/// One turn of waiting: another thread should run.
pub(crate) fn spin_loop() {
    if in_model() { loom::thread::yield_now() } else { core::hint::spin_loop() }
}

pub(crate) use spin_loop as yield_now;

/// A value per thread: loom's threads in a model, those of the host otherwise.
pub(crate) struct Local<T: 'static> {
    pub(crate) outside: &'static std::thread::LocalKey<T>,
    pub(crate) inside: &'static loom::thread::LocalKey<T>,
}

impl<T: 'static> Local<T> {
    pub(crate) fn with<R>(&'static self, body: impl FnOnce(&T) -> R) -> R {
        if in_model() { self.inside.with(body) } else { self.outside.with(body) }
    }
}

macro_rules! local {
    (static $name:ident: $value:ty = const { $init:expr };) => {
        static $name: $crate::sync::loom::Local<$value> = {
            std::thread_local! {
                static OUTSIDE: $value = const { $init };
            }
            loom::thread_local! {
                static INSIDE: $value = $init;
            }
            $crate::sync::loom::Local { outside: &OUTSIDE, inside: &INSIDE }
        };
    };
}

pub(crate) use local as thread_local;

/// The ordering of the load in a read-modify-write of `order`.
fn order_of_load(order: Ordering) -> Ordering {
    match order {
        Ordering::AcqRel => Ordering::Acquire,
        Ordering::Release => Ordering::Relaxed,
        order => order,
    }
}

macro_rules! atomics {
    ($($name:ident $value:ty, $decode:expr; $($operation:ident)*;)*) => { $(
        #[repr(transparent)]
        pub(crate) struct $name(core_atomic::$name);

        impl $name {
            pub(crate) const fn new(value: $value) -> Self {
                Self(core_atomic::$name::new(value))
            }

            fn shadow(&self) -> Option<Rc<Shadow>> {
                shadow(core::ptr::from_ref(self).addr(), || self.0.load(Ordering::Relaxed).into())
            }

            pub(crate) fn load(&self, order: Ordering) -> $value {
                match self.shadow() {
                    Some(shadow) => $decode(shadow.load(order)),
                    None => self.0.load(order),
                }
            }

            pub(crate) fn store(&self, value: $value, order: Ordering) {
                match self.shadow() {
                    Some(shadow) => shadow.store(value.into(), order),
                    None => self.0.store(value, order),
                }
            }

            $(atomics! { @ $operation $value, $decode })*
        }
    )* };
    (@ compare_exchange $value:ty, $decode:expr) => {
        pub(crate) fn compare_exchange(
            &self, now: $value, then: $value, success: Ordering, failure: Ordering,
        ) -> Result<$value, $value> {
            match self.shadow() {
                Some(shadow) => {
                    let result = shadow.compare_exchange(now.into(), then.into(), success, failure);
                    result.map($decode).map_err($decode)
                }
                None => self.0.compare_exchange(now, then, success, failure),
            }
        }

        pub(crate) fn compare_exchange_weak(
            &self, now: $value, then: $value, success: Ordering, failure: Ordering,
        ) -> Result<$value, $value> {
            self.compare_exchange(now, then, success, failure)
        }
    };
    (@ fetch_update $value:ty, $decode:expr) => {
        pub(crate) fn fetch_update(
            &self, success: Ordering, failure: Ordering, mut update: impl FnMut($value) -> Option<$value>,
        ) -> Result<$value, $value> {
            match self.shadow() {
                Some(shadow) => {
                    let update = |now| update($decode(now)).map(u64::from);
                    shadow.update(success, failure, update).map($decode).map_err($decode)
                }
                None => self.0.fetch_update(success, failure, update),
            }
        }
    };
    // Loom may order the write of a read-modify-write behind a store that it did not read. A swap that finds the
    // value it writes would undo such a store, so it writes nothing.
    (@ swap $value:ty, $decode:expr) => {
        pub(crate) fn swap(&self, value: $value, order: Ordering) -> $value {
            match self.shadow() {
                Some(shadow) => {
                    let change = |now| ($decode(now) != value).then(|| value.into());
                    let before = shadow.update(order, order_of_load(order), change);
                    $decode(before.unwrap_or_else(|now| now))
                }
                None => self.0.swap(value, order),
            }
        }
    };
    (@ $operation:ident $value:ty, $decode:expr) => {
        pub(crate) fn $operation(&self, value: $value, order: Ordering) -> $value {
            match self.shadow() {
                Some(shadow) => $decode(shadow.$operation(value.into(), order)),
                None => self.0.$operation(value, order),
            }
        }
    };
}

atomics! {
    AtomicBool bool, |word: u64| word != 0; swap;
    AtomicU8 u8, |word: u64| word as u8; fetch_max;
    AtomicU32 u32, |word: u64| word as u32; fetch_add fetch_sub fetch_max fetch_update;
    AtomicU64 u64, |word: u64| word; fetch_add fetch_sub fetch_max fetch_or fetch_update compare_exchange;
}
