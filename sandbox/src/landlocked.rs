//! Landlock with nothing allowed: the second lock on the file system and on TCP ports, and a wall around signals and
//! abstract sockets.

use landlock::{ABI, Access, AccessFs, AccessNet, Ruleset, RulesetAttr, RulesetStatus, Scope};

use crate::Done;

/// The newest Landlock whose rights we have thought about; an older kernel gets what it knows.
const KNOWN: ABI = ABI::V6;

/// Denies the calling thread, and all it starts, everything that Landlock knows.
pub(crate) fn restrict() -> Done {
    let outcome = Ruleset::default()
        .handle_access(AccessFs::from_all(KNOWN))
        .and_then(|rules| rules.handle_access(AccessNet::from_all(KNOWN)))
        .and_then(|rules| rules.scope(Scope::from_all(KNOWN)))
        .and_then(Ruleset::create)
        .and_then(landlock::RulesetCreated::restrict_self);
    match outcome {
        Ok(status) if status.ruleset != RulesetStatus::NotEnforced => Done::Yes,
        Ok(_) => Done::No("this kernel has none".into()),
        Err(e) => Done::No(e.to_string()),
    }
}
