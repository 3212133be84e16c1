//! NICs: how they are started, what is at the other end of the wire, frames that can be told apart, and a load of them.
//!
//! * [`nic`]: a NIC of a VM, as its command line has it
//! * [`frame`]: frames with numbers, whose every byte is known
//! * [`wire`]: the other end of a stream
//! * [`rig`]: a VM with one NIC on a stream
//! * [`bench`]: what is measured
//! * [`load`]: frames both ways through a guest, all of them counted

pub mod bench;
pub mod frame;
pub mod load;
mod nic;
pub mod rig;
pub mod wire;

pub use nic::{Backend, Memory, Nic};
pub use rig::Rig;
pub use wire::Wire;
