//! `bulkhead pci`: which PCI devices of this host a VM can have, and what stands in the way; takes them from the host, and gives them back.
//!
//! * [`command`]: the command line; `ls`: the table
//! * [`address`]: what a device is called; `class`: what it is, in a word
//! * [`host`]: the kernel's files below a root directory, which in tests is another one; [`function`]: a device as they show it
//! * `usage`: whether the host works with it; [`problem`]: why it cannot be passed through; [`bind`]: does it
//! * `reset`: how its last user is to be forgotten
//!
//! All of it is sysfs, and [`bind`] looks whether somebody has claimed a disk: no device is kept open here, none is reset, and nothing is done to one that the
//! host works with.

pub mod address;
pub mod bind;
mod class;
pub mod command;
pub mod function;
pub mod host;
mod ls;
pub mod problem;
mod reset;
#[cfg(test)]
mod tests;
mod usage;

pub use self::address::Address;
pub use self::host::Host;
