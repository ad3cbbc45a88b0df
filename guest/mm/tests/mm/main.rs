//! The memory management on simulated machines, through its public interface.
//! Identifiers such as S3.1 are claims of `docs/features.toml`.

mod accounting;
mod altmap;
mod boot;
mod contig;
mod deferred;
mod device_steps;
mod early;
mod errors;
mod evacuation;
mod faults;
mod grow_only;
mod interrupts;
mod lazy;
mod migration;
mod model;
mod numa;
mod partly_plugged;
mod pcp;
mod pitfalls;
mod range;
mod reporting;
mod steps;
mod stress;
mod window;
mod workload;
mod zone_device;
