//! A control plane from its socket to its end.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use tidevm_machine::socket::{self, SocketError};
use tidevm_machine::{Beside, Companion, Config, Purpose, StartError, VmHandle};
use tidevm_sizer::Sizer;

use crate::backend::Backend;
use crate::draft::Draft;
use crate::preboot::Preboot;
use crate::response::Response;
use crate::running::Running;
use crate::server::{Machine, Server};

use crate::{Identity, LogTarget};

/// Why there is no control plane.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The host refuses.
    #[error("the API cannot be served: {0}")]
    Host(#[from] io::Error),
    /// The address for metrics.
    #[error("--metrics-listen {address}: cannot listen: {error}; choose another address or port")]
    Metrics {
        /// The address.
        address: SocketAddr,
        /// The system's error.
        error: io::Error,
    },
    /// A file that the configuration names.
    #[error("{0}")]
    Config(String),
}

/// The name of the thread that serves clients.
const THREAD: &str = "api";

/// A control plane that listens.
#[derive(Debug)]
pub struct Control {
    server: Server,
    preboot: Preboot,
    sizer: Sizer,
    /// The socket stays as long as this is open, in this process or in a child of it.
    _keeper: io::PipeWriter,
}

impl Control {
    /// Listens at `path`. `draft` is what is configured already, and `base` what Firecracker's interface does not name. `sizer` is
    /// to run beside the machine too. The process has one thread.
    ///
    /// # Errors
    /// [`ControlError`].
    pub fn listen(
        path: &Path,
        draft: Draft,
        identity: Identity,
        base: Config,
        log: LogTarget,
        sizer: Sizer,
    ) -> Result<Self, ControlError> {
        let socket = socket::listen("--api-sock ", path)?;
        let mut preboot = Preboot::new(draft, identity, base, log);
        preboot.open_files().map_err(ControlError::Config)?;
        Ok(Self { server: Server::new(socket.listener)?, preboot, sizer, _keeper: socket.keeper })
    }

    /// Serves metrics, and nothing else, at `address` too, from now on.
    ///
    /// # Errors
    /// The address cannot be listened at.
    pub fn serve_metrics(&mut self, address: SocketAddr) -> Result<(), ControlError> {
        let listener = TcpListener::bind(address);
        let served = listener.and_then(|listener| self.server.serve_metrics(listener));
        served.map_err(|error| ControlError::Metrics { address, error })
    }

    /// The machine as it is configured.
    ///
    /// # Errors
    /// What is missing.
    pub fn config(&self, base: &Config) -> Result<Config, ControlError> {
        self.preboot.draft.config(base).map_err(ControlError::Config)
    }

    /// Lets clients configure the machine, until one has it started. Then returns the machine to start; the client waits for
    /// [`Control::beside`] or [`Control::refuse`].
    ///
    /// # Errors
    /// The host refuses.
    pub fn configure(&mut self) -> Result<Config, ControlError> {
        loop {
            self.server.serve(&mut self.preboot, None)?;
            if let Some(config) = self.preboot.start.take() {
                return Ok(config);
            }
        }
    }

    /// Tells the client that had the machine started that it did not start.
    pub fn refuse(&mut self, error: &StartError) {
        let fault = Response::fault(&format!("Start microvm error: {error}"));
        self.server.answer_start(&mut self.preboot, &fault);
    }

    /// The thread that serves `control` beside a VM. `control` is taken when the VM is about to run; if the VM does not start, it is
    /// still there.
    #[must_use]
    pub fn beside(control: Arc<Mutex<Option<Self>>>) -> Companion {
        let body = move |vm: VmHandle, beside: Beside| {
            let taken = control.lock().unwrap_or_else(PoisonError::into_inner).take();
            let Some(control) = taken else { return };
            if let Err(error) = control.serve(&vm, beside) {
                log::error!("the API is not served any more: {error}");
            }
        };
        Companion { name: THREAD, purpose: Purpose::Serve, body: Box::new(body) }
    }

    fn serve(self, vm: &VmHandle, beside: Beside) -> io::Result<()> {
        let Self { mut server, preboot, sizer, _keeper } = self;
        let Preboot { draft, identity, metrics, requests, .. } = preboot;
        let mut running = Running::new(vm.clone(), sizer, draft, identity, metrics, requests);
        let changes = vm.subscribe()?;
        let Some(over) = beside.lock_in() else { return Ok(()) };
        let machine = Machine { changes, over };
        server.listen_to(&machine)?;
        server.answer_start(&mut running, &Response::done());
        server.serve(&mut running as &mut dyn Backend, Some(&machine)).map(drop)
    }
}
