//! What is on the wire between a guest and its VMBus devices: identifiers, protocol versions, channel
//! messages, GPADLs, rings and packets.
//!
//! Everything here works on bytes that somebody else handed over. The crate does no I/O, owns no file
//! descriptor, maps no memory and decides no policy; it never trusts a value that it has not read exactly
//! once into private memory and then checked. Shared memory is reached only through [`ring::RingMemory`].
//!
//! Both ends are here, because the guest's side (`vsc`) speaks the same protocol: each format that is parsed
//! can also be built.
//!
//! * [`guid`]: identifiers, and the class identifiers of the devices that we know.
//! * [`protocol`]: versions of the protocol and what each of them changed.
//! * [`synic`]: the message and event-flag pages that carry the messages and the interrupts.
//! * [`message`]: channel messages, both directions.
//! * [`gpadl`]: lists of guest pages that arrive in several messages.
//! * [`ring`]: the ring buffer of one direction of a channel.
//! * [`packet`]: what travels in a ring.

#![no_std]
#![forbid(unsafe_code)]

#[cfg(target_endian = "big")]
compile_error!("VMBus is little-endian and so is every host that this crate supports");

extern crate alloc;
#[cfg(any(test, feature = "testing"))]
extern crate std;

pub mod gpadl;
pub mod guid;
pub mod message;
pub mod packet;
pub mod protocol;
pub mod ring;
pub mod synic;

/// Bytes in a page of guest memory, as VMBus counts them (`HV_HYP_PAGE_SIZE`).
pub const PAGE_SIZE: u32 = 4096;
