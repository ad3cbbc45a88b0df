//! How this crate locks.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks `mutex`, also when a thread panicked while it held the lock.
///
/// Every critical section of this crate leaves its data valid at each step, so a panic leaves nothing half
/// done. The panic itself is caught at the root of its thread and becomes a [`crate::Death`].
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
