//! What lies between the core and a device process (a VSP), and nothing else: the control socket
//! and its messages, the shared-memory handles, the ledger, the doorbells, and the configuration that the
//! supervisor hands to the core.
//!
//! It must never know what a device does, hold a policy about who may attach, or touch KVM.
//! Everything received here comes from the other side of a trust boundary, so every length,
//! descriptor and seal is checked before anybody else sees it.
//!
//! Unsafe code is confined to [`shm`] (mapped memory) and the private `scm` module (descriptor
//! passing).

#![deny(unsafe_code)]

pub mod config;
pub mod event;
pub mod ledger;
pub mod message;
pub mod operator;
#[allow(unsafe_code)]
mod scm;
#[allow(unsafe_code)]
pub mod shm;
pub mod socket;
pub mod stream;
