//! Closing the door, and trying it afterwards.

use std::os::fd::RawFd;

use sandbox::{Compartment, Entered, Ids, Namespaces, Policy};

use crate::cli::Common;

/// Puts the process into its compartment. `keep` are the descriptors that it goes on with.
pub fn enter(
    name: &'static str,
    policy: Policy,
    common: &Common,
    keep: Vec<RawFd>,
) -> Result<Option<Entered>, String> {
    if common.no_sandbox {
        if !cfg!(debug_assertions) {
            return Err("--no-sandbox is for debug builds; this is a release build".into());
        }
        tracing::warn!("--no-sandbox: this process is NOT confined");
        sandbox::crash::install().map_err(|error| error.to_string())?;
        return Ok(None);
    }
    let ids = match (common.uid, common.gid) {
        (Some(uid), Some(gid)) => Some(Ids { uid, gid }),
        _ => None,
    };
    let compartment = Compartment { name, ids, keep, policy, namespaces: Namespaces::all(), heir: true };
    let entered = compartment.enter().map_err(|error| error.to_string())?;
    tracing::debug!("in the compartment: {entered}");
    Ok(Some(entered))
}

/// Tries a forbidden act. Coming back at all means that the policy has a hole.
pub fn try_forbidden(act: &str) -> String {
    match sandbox::policy_test::run(act) {
        None => {
            let names: Vec<_> = sandbox::policy_test::FORBIDDEN.iter().map(|act| act.name).collect();
            format!("unknown act `{act}`; known ones: {}", names.join(" "))
        }
        Some(Ok(value)) => format!("the compartment let `{act}` through: it returned {value}"),
        Some(Err(error)) => format!("the compartment let `{act}` through to the kernel: {error}"),
    }
}
