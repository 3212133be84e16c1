//! What a driver reads of the NIC: `struct virtio_net_config` (virtio 1.2, 5.1.4). Front ends that know the NIC themselves, such as QEMU,
//! show their own.

use crate::cli::Mac;

/// Bytes of it, the fields included that no feature of ours gives a meaning.
pub const CONFIG_LEN: usize = 24;

/// In `status`: there is a link.
const LINK_UP: u16 = 1;
/// Speed of the link in Mbit/s: what a TAP says of itself.
const SPEED: u32 = 10_000;
/// In `duplex`: full.
const FULL_DUPLEX: u8 = 1;

/// The bytes: address, status, pairs of queues, MTU, speed, duplex; of receive-side scaling nothing.
pub fn config(mac: Mac, link_up: bool, pairs: u16, mtu: u16) -> [u8; CONFIG_LEN] {
    let mut bytes = [0; CONFIG_LEN];
    let status = if link_up { LINK_UP } else { 0 };
    bytes[..6].copy_from_slice(&mac.0);
    bytes[6..8].copy_from_slice(&status.to_le_bytes());
    bytes[8..10].copy_from_slice(&pairs.to_le_bytes());
    bytes[10..12].copy_from_slice(&mtu.to_le_bytes());
    bytes[12..16].copy_from_slice(&SPEED.to_le_bytes());
    bytes[16] = FULL_DUPLEX;
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_where_drivers_look() {
        let bytes = config(Mac([2, 0, 0x5e, 0x10, 0, 1]), true, 4, 9000);
        assert_eq!(&bytes[..12], [2, 0, 0x5e, 0x10, 0, 1, 1, 0, 4, 0, 0x28, 0x23]);
        assert_eq!(&bytes[12..], [0x10, 0x27, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(config(Mac([2, 0, 0, 0, 0, 1]), false, 1, 1500)[6], 0);
    }
}
