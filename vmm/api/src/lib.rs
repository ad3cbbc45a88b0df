//! The control plane of a VM: Firecracker's REST interface on a Unix socket, and what it lacks.
//!
//! | module | what it is | what it does not know |
//! | --- | --- | --- |
//! | [`http`], [`response`] | requests and answers of HTTP/1.1 | paths |
//! | [`route`], [`body`] | what a request asks for: its path, its JSON body | machines |
//! | `draft` | a machine in Firecracker's words, before it starts | clients |
//! | [`memory`], [`events`], [`guest`], [`prometheus`], `metrics` | what is told of a running machine | clients |
//! | [`requests`] | how often clients asked for what | machines |
//! | `backend` | where a server and a machine meet | both |
//! | `preboot`, `running` | the two machines behind it | sockets |
//! | [`server`], [`client`] | one thread for all clients | machines |
//! | [`caller`] | the other end: a program that calls the API | machines |
//!
//! [`Control::listen`] makes a control plane; [`Control::beside`] runs it beside a VM, and [`Control::configure`] lets clients
//! configure a machine first. `docs/api.md` is the list of calls for people.
//!
//! Invariant: a client makes neither the VM nor another client wait, and cannot do what the command line cannot.

mod backend;
mod balloon;
pub mod body;
pub mod caller;
pub mod client;
mod control;
mod draft;
pub mod events;
pub mod guest;
pub mod http;
pub mod memory;
mod metrics;
mod preboot;
pub mod prometheus;
pub mod requests;
pub mod response;
pub mod route;
mod running;
pub mod server;

use std::fs::File;

use serde_json::{Value, json};

pub use control::{Control, ControlError};
pub use draft::Draft;
pub use metrics::open_to_append;

/// The version of Firecracker whose calls are understood: the first with `/hotplug/memory`.
pub const FIRECRACKER_VERSION: &str = "1.14.0";

/// Has the log go to a file, or keep its place, and show messages from a level on, or as before.
pub type LogTarget = fn(Option<File>, Option<body::Level>);

/// Who answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The name of the VM.
    pub id: String,
    /// The version of this program.
    pub version: &'static str,
}

impl Identity {
    /// `GET /`.
    fn instance(&self, state: &str) -> Value {
        json!({ "id": self.id, "state": state, "vmm_version": self.version, "app_name": "tidevm" })
    }

    /// `GET /version`.
    fn version(&self) -> Value {
        json!({ "firecracker_version": FIRECRACKER_VERSION, "tidevm_version": self.version })
    }
}
