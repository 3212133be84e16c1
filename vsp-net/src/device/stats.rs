//! What the NIC has done since its process began, besides what the guest may ask for ([`crate::oid::Statistics`]).
//!
//! Kept in this process and gone with it: nothing that a guest or a successor depends on.

use serde::Serialize;

/// Counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Stats {
    /// Frames that the guest's filter does not want, or that came while there was no link.
    pub rx_filtered: u64,
    /// Blocks lent: transfer-page packets.
    pub rx_blocks: u64,
    /// How often frames had to wait because the guest had all blocks, or no room in its ring.
    pub rx_waits: u64,
    /// Frames from the guest that came by a page list.
    pub tx_by_pages: u64,
    /// How often a frame had to wait for the backend.
    pub tx_waits: u64,
    /// Frames with somebody else's source address.
    pub spoofed: u64,
    /// Messages of the guest's that make no sense.
    pub malformed: u64,
    /// Answers that were not given for want of a block: the guest keeps them all.
    pub answers_lost: u64,
}
