//! Closing the door. From then on the console has what it was given, and can take connections on it; nothing else.

use std::os::fd::RawFd;

use sandbox::{Compartment, Ids, Namespaces};

/// What the compartment is like.
#[derive(Clone, Debug, Default)]
pub struct Door {
    /// User and group to become.
    pub ids: Option<(u32, u32)>,
    /// Stay outside; debug builds only.
    pub stays_open: bool,
    /// Afterwards, try this and say what happened.
    pub policy_test: Option<String>,
}

impl Door {
    /// As the command line says.
    pub fn of(common: &vsp::Common) -> Self {
        Self {
            ids: common.uid.zip(common.gid),
            stays_open: common.no_sandbox,
            policy_test: common.policy_test.clone(),
        }
    }

    /// Closes it. `keep` are the descriptors that the process goes on with, besides those of its logs.
    ///
    /// # Errors
    /// One sentence. The process is half-way then: it has to end.
    pub fn close(self, keep: &[RawFd]) -> Result<(), String> {
        if self.stays_open {
            if !cfg!(debug_assertions) {
                return Err("--no-sandbox is for debug builds; this is a release build".into());
            }
            tracing::warn!("--no-sandbox: this process is NOT confined");
            return sandbox::crash::install().map_err(|error| error.to_string());
        }
        let mut keep = keep.to_vec();
        keep.extend([0, 1, 2]);
        keep.extend(logs::descriptors());
        let compartment = Compartment {
            name: "bulkhead-console",
            ids: self.ids.map(|(uid, gid)| Ids { uid, gid }),
            keep,
            policy: sandbox::policies::CONSOLE,
            namespaces: Namespaces::all(),
            // Its video memory is no more than a few MiB, and nobody waits for what it has open.
            heir: false,
        };
        let entered = compartment.enter().map_err(|error| error.to_string())?;
        tracing::debug!("in the compartment: {entered}");
        match self.policy_test {
            Some(act) => Err(try_forbidden(&act)),
            None => Ok(()),
        }
    }
}

/// Tries a forbidden act. Coming back at all means that the policy has a hole.
fn try_forbidden(act: &str) -> String {
    match sandbox::policy_test::run(act) {
        None => {
            let names: Vec<_> = sandbox::policy_test::FORBIDDEN.iter().map(|act| act.name).collect();
            format!("unknown act `{act}`; known ones: {}", names.join(" "))
        }
        Some(Ok(value)) => format!("the compartment let `{act}` through: it returned {value}"),
        Some(Err(error)) => format!("the compartment let `{act}` through to the kernel: {error}"),
    }
}
