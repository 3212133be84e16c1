//! The partition: KVM, guest memory, SynIC, VMBus server, boot. One process a VM.
//!
//! This is the microkernel of the house. It knows partitions, memory, interrupts, channels and
//! offers. It must never know what a channel carries, nor be on the path of any data.
//!
//! Unsafe code is confined to the mapping of guest memory ([`memory`]), KVM's requests and page ([`kvm::ioctl`]) and the
//! handler of one signal ([`kvm::signal`]).

#![deny(unsafe_code)]

pub mod boot;
pub mod bus;
pub mod hypercall;
pub mod kvm;
pub mod layout;
pub mod legacy;
pub mod memory;
pub mod partition;
pub mod runner;
pub mod server;
pub mod setup;
pub mod synic;
pub mod terminal;
#[cfg(test)]
mod testing;
