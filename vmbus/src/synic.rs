//! The synthetic interrupt controller's two pages, as far as VMBus uses them: messages to the guest, and event
//! flags.
//!
//! Layouts are those of the Hyper-V TLFS ("Synthetic Interrupt Controller"). This module never decides when a
//! slot is free; it only says where things lie.

/// Synthetic interrupt sources of a virtual processor.
pub const SINT_COUNT: u32 = 16;
/// The source on which VMBus messages and channel interrupts arrive.
pub const VMBUS_SINT: u32 = 2;

/// Bytes of a message slot; slot `n` of the message page belongs to source `n`.
pub const MESSAGE_SIZE: usize = 256;
/// Bytes of the header of a message.
pub const MESSAGE_HEADER_SIZE: usize = 16;
/// Most payload that a message carries, in bytes; also the limit of a channel message.
pub const MESSAGE_PAYLOAD_SIZE: usize = 240;
/// Message type of an empty slot.
pub const MESSAGE_TYPE_NONE: u32 = 0;
/// Message type of VMBus channel messages, in both directions.
pub const MESSAGE_TYPE_CHANNEL: u32 = 1;
/// Bit in the header's flags byte: another message waits for this slot, so the guest has to write the
/// end-of-message register.
pub const MESSAGE_FLAG_PENDING: u8 = 1;
/// Offset of the flags byte in a message slot.
pub const MESSAGE_FLAGS_OFFSET: usize = 5;

/// Bytes of event flags of one source; source `n` has those from `n * 256` on in the event-flags page.
pub const EVENT_FLAGS_SIZE: usize = 256;
/// Event flags of one source. A channel's flag is its relid.
pub const EVENT_FLAGS_COUNT: u32 = 2048;

/// Connection to which the guest posts messages before protocol 5.0.
pub const MESSAGE_CONNECTION_ID: u32 = 1;
/// Connection which the guest signals for channels without a dedicated one (before Windows 8).
pub const EVENT_CONNECTION_ID: u32 = 2;
/// Connection of the monitor pages.
pub const MONITOR_CONNECTION_ID: u32 = 3;
/// Connection to which the guest posts initiate-contact since protocol 5.0.
pub const MESSAGE_CONNECTION_ID_5: u32 = 4;

/// What is wrong with a message slot's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the SynIC message claims {0} bytes of payload; at most 240 fit")]
pub struct BadPayloadSize(pub u8);

/// A message slot as the guest sees it. `sender` is the host's port id.
///
/// # Panics
/// If `payload` is longer than [`MESSAGE_PAYLOAD_SIZE`]: an error of the caller's.
pub fn encode_message(message_type: u32, sender: u64, payload: &[u8]) -> [u8; MESSAGE_SIZE] {
    assert!(payload.len() <= MESSAGE_PAYLOAD_SIZE, "a SynIC message carries at most 240 bytes");
    let mut slot = [0; MESSAGE_SIZE];
    slot[0..4].copy_from_slice(&message_type.to_le_bytes());
    slot[4] = payload.len() as u8;
    slot[8..16].copy_from_slice(&sender.to_le_bytes());
    slot[MESSAGE_HEADER_SIZE..][..payload.len()].copy_from_slice(payload);
    slot
}

/// The type and the payload of a message slot; `None` for an empty slot.
pub fn parse_message(slot: &[u8; MESSAGE_SIZE]) -> Result<Option<(u32, &[u8])>, BadPayloadSize> {
    let message_type = u32::from_le_bytes([slot[0], slot[1], slot[2], slot[3]]);
    if message_type == MESSAGE_TYPE_NONE {
        return Ok(None);
    }
    let payload = slot[MESSAGE_HEADER_SIZE..].get(..usize::from(slot[4])).ok_or(BadPayloadSize(slot[4]))?;
    Ok(Some((message_type, payload)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_round_trips() {
        let slot = encode_message(MESSAGE_TYPE_CHANNEL, 1, b"hello");
        assert_eq!(parse_message(&slot), Ok(Some((MESSAGE_TYPE_CHANNEL, &b"hello"[..]))));
        assert_eq!(parse_message(&[0; MESSAGE_SIZE]), Ok(None));
    }

    #[test]
    fn a_lying_payload_size_is_refused() {
        let mut slot = encode_message(MESSAGE_TYPE_CHANNEL, 1, &[0; 240]);
        slot[4] = 241;
        assert_eq!(parse_message(&slot), Err(BadPayloadSize(241)));
    }
}
