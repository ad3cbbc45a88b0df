//! What benchmarks share: a machine without a simulation in it, clocks, counts of instructions, a table.
//!
//! Every figure stands beside a reference of the same run, measured in turns with it, because the
//! machine is somebody else's too: the ratio of both says more than either. Targets are
//! reported, never asserted.

pub mod clock;
pub mod count;
pub mod machine;
pub mod table;
