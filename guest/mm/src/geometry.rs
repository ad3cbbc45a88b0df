//! Sizes of tables that a kernel chooses when it builds this crate: how many nodes, owners and ranges there can be.
//!
//! Takes the place of Linux's `CONFIG_NODES_SHIFT` and of the constants beside it. Each size has a variable of the environment,
//! which the compiler reads; `[env]` in `.cargo/config.toml` is a good place. So a size is a constant, no hot path loads or
//! compares one, and no type has a parameter for it. Two kernels of one build have the same sizes.
//!
//! PLATFORM.md has the table of variables.
//!
//! Invariant: a number of nodes is a power of two, so that a node's number is some bits of a word.

/// The size that `value`, the variable's text, says; `default` without one.
const fn size(value: Option<&str>, default: usize, least: usize, most: usize) -> usize {
    let Some(value) = value else { return default };
    match usize::from_str_radix(value, 10) {
        Ok(size) if least <= size && size <= most => size,
        _ => panic!("a variable TIDEVM_MM_... is no number, or none that this size can have"),
    }
}

/// Most nodes that a machine can have (Linux `MAX_NUMNODES`).
pub const MAX_NODES: usize = size(option_env!("TIDEVM_MM_NODES"), 4, 1, 4);

/// Number of owners that can be registered.
pub const MAX_OWNERS: usize = size(option_env!("TIDEVM_MM_OWNERS"), 8, 1, 256);

/// Most ranges of device memory that are mapped at a time.
pub const MAX_PGMAPS: usize = size(option_env!("TIDEVM_MM_PGMAPS"), 16, 1, 256);

/// Ranges that each table of a [`Memblock`](crate::Memblock) can hold.
pub const MEMBLOCK_RANGES: usize = size(option_env!("TIDEVM_MM_MEMBLOCK_RANGES"), 128, 8, 1 << 16);

/// The largest number of ranges of memory that are left for later.
pub(crate) const DEFERRED_RANGES: usize = size(option_env!("TIDEVM_MM_DEFERRED_RANGES"), 64, 8, 1 << 16);

const _: () = assert!(MAX_NODES.is_power_of_two(), "TIDEVM_MM_NODES is 1, 2 or 4");
