//! The memory management on simulated machines, through its public interface.

mod accounting;
mod altmap;
mod boot;
mod deferred;
mod faults;
mod lazy;
mod migration;
mod model;
mod pcp;
mod stress;
mod subsections;
mod workload;
