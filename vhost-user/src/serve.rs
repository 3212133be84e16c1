//! The life of a device process that serves front ends of vhost-user, from `main` to the end.

use std::fmt::Display;
use std::process::ExitCode;

use ipc::stream::Listener;
use thiserror::Error;
use vsp::Common;
pub use vsp::Program;
use vsp::compartment;
use vsp::notify::{Notifier, NotifyError};

use crate::cli::Listen;
use crate::face::Face;
use crate::kill;
use crate::runtime::{Runtime, RuntimeError};

#[derive(Debug, Error)]
enum ServeError {
    #[error("{0}")]
    Device(String),
    #[error("nowhere to listen: give --vhost-user or --vhost-user-fd")]
    Nowhere,
    #[error("cannot listen at {place}: {source}")]
    Listen { place: String, source: std::io::Error },
    #[error("cannot enter the compartment: {0}")]
    Compartment(String),
    #[error(transparent)]
    Notify(#[from] NotifyError),
    #[error("{0}")]
    KillPoint(String),
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error("{0}")]
    PolicyTest(String),
}

/// Runs a device process: opens the device, closes the compartment, serves one front end after the other for as long as it lives.
///
/// `open` opens all that the device will ever need; afterwards nothing can be opened any more. It only comes back if something is
/// wrong, which is said in one sentence.
pub fn serve<F, E>(
    program: Program,
    common: &Common,
    listen: &Listen,
    open: impl FnOnce() -> Result<F, E>,
) -> ExitCode
where
    F: Face,
    E: Display,
{
    logs::init(common.log_format, common.log_level.0, &common.device);
    let Err(error) = run(program, common, listen, open);
    tracing::error!("{error}");
    ExitCode::FAILURE
}

fn run<F, E>(
    program: Program,
    common: &Common,
    listen: &Listen,
    open: impl FnOnce() -> Result<F, E>,
) -> Result<std::convert::Infallible, ServeError>
where
    F: Face,
    E: Display,
{
    if let Some(point) = &common.kill_point {
        kill::arm(point).map_err(ServeError::KillPoint)?;
    }
    let notifier = Notifier::new(common)?;
    let face = open().map_err(|error| ServeError::Device(error.to_string()))?;
    let listener = listener(listen)?;
    if let Some(socket) = notifier.descriptor() {
        sandbox::crash::notify(socket);
    }
    sandbox::crash::speak_with(logs::last_words);
    let mut runtime = Runtime::new(face, listener, notifier)?;
    let mut keep = vec![0, 1, 2];
    keep.extend(logs::descriptors());
    keep.extend(runtime.descriptors());
    compartment::enter(program.name, program.policy, common, keep).map_err(ServeError::Compartment)?;
    if let Some(act) = &common.policy_test {
        return Err(ServeError::PolicyTest(compartment::try_forbidden(act)));
    }
    // The process ends without cleaning up: whatever is in flight has nobody to tell, and waiting for it would only keep a successor from
    // the resource.
    loop {
        if let Err(error) = runtime.turn(None) {
            tracing::error!("{error}");
            std::process::exit(1)
        }
    }
}

fn listener(listen: &Listen) -> Result<Listener, ServeError> {
    let (listener, place) = match listen {
        Listen { vhost_user: Some(path), .. } => (Listener::bind(path), path.display().to_string()),
        Listen { vhost_user_fd: Some(number), .. } => {
            (Listener::inherited(*number), format!("descriptor {number}"))
        }
        _ => return Err(ServeError::Nowhere),
    };
    listener.map_err(|source| ServeError::Listen { place, source })
}
