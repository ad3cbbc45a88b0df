//! What the clients of an API are served beside a session: where, and as which machine.

use std::net::SocketAddr;
use std::path::Path;

use tidevm_api::Identity;

use crate::cli::Run;

/// What clients are served.
pub struct Api<'a> {
    /// The path of their socket.
    pub path: &'a Path,
    /// The name of the machine.
    pub id: &'a str,
    /// Where metrics are served too.
    pub metrics: Option<SocketAddr>,
}

impl<'a> Api<'a> {
    /// What the options say, if there is a socket.
    pub fn of(options: &'a Run) -> Option<Self> {
        let path = options.api_sock.as_deref()?;
        Some(Self { path, id: &options.id, metrics: options.metrics_listen })
    }
}

/// What answers as the machine `id`.
pub fn identity(id: &str) -> Identity {
    Identity { id: id.to_owned(), version: env!("CARGO_PKG_VERSION") }
}
