//! What the NIC has done for the front end that it has, or has had: for the log alone.

use crate::oid::Statistics;

/// Counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Stats {
    /// Frames and bytes, and what was dropped.
    pub frames: Statistics,
    /// Frames with somebody else's source address.
    pub spoofed: u64,
    /// How often a frame had to wait for the backend.
    pub tx_waits: u64,
    /// How often frames had to wait because the driver had given no memory for them.
    pub rx_waits: u64,
    /// Frames that went through memory of ours, for want of the driver's.
    pub rx_staged: u64,
    /// Buffers that went back empty, for want of RAM in them or in one behind them.
    pub rx_bad: u64,
}

impl Stats {
    /// Says it all, for whoever looks why a network is slow.
    pub fn log(&self) {
        let Stats {
            frames: Statistics { transmit, receive },
            spoofed,
            tx_waits,
            rx_waits,
            rx_staged,
            rx_bad,
        } = self;
        tracing::info!(
            tx_packets = transmit.frames(),
            tx_bytes = transmit.bytes(),
            tx_drops = transmit.discards + transmit.errors,
            rx_packets = receive.frames(),
            rx_bytes = receive.bytes(),
            rx_drops = receive.discards + receive.errors,
            spoofed,
            tx_waits,
            rx_waits,
            rx_staged,
            rx_bad,
            "frames that have passed"
        );
    }
}
