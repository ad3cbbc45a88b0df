//! What a workload is called: a [`Name`] by people, a [`Handle`] in records, and texts that translate the
//! one to the other.

use alloc::borrow::ToOwned;
use alloc::string::String;
use core::fmt;

/// Names one workload of a session in records. The VMM chooses it, and never uses one twice at a time.
pub type Handle = u32;

/// First handle of the workloads that are started at the guest's console. The VMM uses smaller ones.
pub const SHELL_HANDLES: Handle = 1 << 31;

/// A workload's name in a script: a letter, then letters, digits, `_` and `-`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(String);

impl Name {
    /// Takes `text` if it is a name.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        let mut letters = text.chars();
        let starts = letters.next()?.is_ascii_alphabetic();
        let goes_on = letters.all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'));
        (starts && goes_on).then(|| Self(text.to_owned()))
    }

    /// The name as it is written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Shows a value that holds [`Handle`]s with the names that people gave to the workloads. Without names,
/// the value's own `Display` shows the handles.
#[derive(Clone, Copy)]
pub struct Named<'n, T> {
    pub(crate) value: &'n T,
    name_of: &'n dyn Fn(Handle) -> Option<Name>,
}

impl<'n, T> Named<'n, T> {
    /// `value`, with the names that `name_of` knows.
    pub fn new(value: &'n T, name_of: &'n dyn Fn(Handle) -> Option<Name>) -> Self {
        Self { value, name_of }
    }

    /// The same names for a part of the value.
    pub(crate) fn part<U>(&self, value: &'n U) -> Named<'n, U> {
        Named { value, name_of: self.name_of }
    }

    /// The name of a workload, if it is known.
    pub(crate) fn name_of(&self, handle: Handle) -> Option<Name> {
        (self.name_of)(handle)
    }
}
