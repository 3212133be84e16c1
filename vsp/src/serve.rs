//! The life of a device process, from `main` to the end.

use std::fmt::Display;
use std::process::ExitCode;

use std::os::fd::AsRawFd;
use std::time::Duration;

use ipc::socket::Peer;
use sandbox::Policy;
use thiserror::Error;

use crate::attach::{AttachError, connect};
use crate::cli::Common;
use crate::compartment;
use crate::device::Device;
use crate::notify::{Notifier, NotifyError};
use crate::runtime::{Flow, Runtime, RuntimeError, Setting};

/// What is fixed about a device program.
#[derive(Clone, Copy, Debug)]
pub struct Program {
    /// Its name, for logs.
    pub name: &'static str,
    /// The syscalls that it may use once it serves.
    pub policy: Policy,
}

#[derive(Debug, Error)]
enum ServeError {
    #[error("which device of the VM is it? Give its name: --device NAME")]
    NoName,
    #[error("{0}")]
    Device(String),
    #[error("cannot enter the compartment: {0}")]
    Compartment(String),
    #[error(transparent)]
    Attach(#[from] AttachError),
    #[error(transparent)]
    Notify(#[from] NotifyError),
    #[error("{0}")]
    KillPoint(String),
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error("{0}")]
    PolicyTest(String),
}

/// Runs a device process: opens the device, closes the compartment, attaches, serves until the core is gone.
///
/// `open` opens all that the device will ever need; afterwards nothing can be opened any more. Exit code 0:
/// the core is gone, as planned or not, or another process serves the device. 1: it could not start or go on, said in one
/// sentence.
pub fn serve<D, E>(program: Program, common: &Common, open: impl FnOnce() -> Result<D, E>) -> ExitCode
where
    D: Device,
    E: Display,
{
    logs::init(common.log_format, common.log_level.0, &common.device);
    match run(program, common, open) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run<D, E>(program: Program, common: &Common, open: impl FnOnce() -> Result<D, E>) -> Result<(), ServeError>
where
    D: Device,
    E: Display,
{
    if common.device.is_empty() {
        return Err(ServeError::NoName);
    }
    if let Some(point) = &common.kill_point {
        crate::channel::arm_kill_point(point).map_err(ServeError::KillPoint)?;
    }
    let notifier = Notifier::new(common)?;
    let peer = if common.policy_test.is_some() { None } else { Some(connect(common)?) };
    let device = open().map_err(|error| ServeError::Device(error.to_string()))?;
    if let Some(socket) = notifier.descriptor() {
        sandbox::crash::notify(socket);
    }
    sandbox::crash::speak_with(logs::last_words);
    let setting = Setting { name: common.device.clone(), ledger: !common.bench_without_ledger, notifier };
    let runtime = Runtime::new(device, setting)?;
    let mut keep = vec![0, 1, 2];
    keep.extend(logs::descriptors());
    keep.extend(runtime.descriptors());
    keep.extend(peer.as_ref().map(AsRawFd::as_raw_fd));
    compartment::enter(program.name, program.policy, common, keep).map_err(ServeError::Compartment)?;
    if let Some(act) = &common.policy_test {
        return Err(ServeError::PolicyTest(compartment::try_forbidden(act)));
    }
    let Some(peer) = peer else { return Err(AttachError::Nowhere.into()) };
    serve_peer(runtime, peer)
}

/// How long a process that has handed over stays before it ends. To end takes the kernel milliseconds (mappings, namespaces), on kernels that are not
/// preempted in one go, and right now the guest wants the processor for what it has waited for.
const RETIRED: Duration = Duration::from_millis(20);

fn serve_peer<D: Device>(mut runtime: Runtime<D>, peer: Peer) -> Result<(), ServeError> {
    runtime.greet(peer)?;
    // The process ends without cleaning up: whatever is in flight has nobody to tell, and waiting for it would only
    // keep a successor from the disk.
    loop {
        match runtime.turn(None) {
            Ok(Flow::Continue) => {}
            Ok(Flow::CoreGone) => std::process::exit(0),
            Ok(Flow::Retired) => {
                runtime.rest(RETIRED);
                std::process::exit(0)
            }
            Err(error) => {
                tracing::error!("{error}");
                std::process::exit(1)
            }
        }
    }
}
