//! Campaigns: what is too long for a test, or measures. `cargo xtask chaos` and `cargo xtask bench continuity` start them.
//!
//! * [`kills`]: a device process is killed again and again under load
//! * [`swaps`]: two builds of it take turns under load
//! * [`figures`]: how long the guest waits
//! * [`cost`]: what the ledger costs
//! * [`witness`]: when the machine itself stood still

pub mod cost;
pub mod figures;
pub mod kills;
pub mod latency;
pub mod swaps;
pub mod victim;
pub mod witness;
