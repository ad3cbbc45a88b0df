//! Tools for benchmarks of `guest/mm`: a machine of plain memory, clocks, instruction counts, a table.
//!
//! Each figure stands beside a reference that was measured in the same run, in turns with it. The host runs other
//! work too, so the ratio of the two says more than either figure. Targets are reported, never asserted.

pub mod clock;
pub mod count;
pub mod machine;
pub mod quiet;
pub mod random;
pub mod rivals;
pub mod table;
