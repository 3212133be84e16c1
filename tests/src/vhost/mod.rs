//! The tests' own vhost-user front end: what a VMM does, and what a hostile one can do. It shares no code with the daemons.
//!
//! Sources of every protocol fact: the vhost-user specification (QEMU's `docs/interop/vhost-user.rst`), and VIRTIO 1.2 for rings and
//! requests.
//!
//! * [`protocol`]: messages, as bytes
//! * [`line`]: a connection, on which anything can be said
//! * [`memory`]: the guest's memory
//! * [`ring`]: a driver's end of a split ring
//! * [`front`]: an honest front end, which connects and connects again
//! * [`blk`]: requests of virtio-blk
//! * [`nic`]: frames of virtio-net
//! * [`daemon`]: a daemon, which is started, killed and started again
//! * [`load`]: a load that checks everything

pub mod blk;
pub mod daemon;
pub mod front;
pub mod line;
pub mod load;
pub mod memory;
pub mod nic;
pub mod protocol;
pub mod ring;

pub use daemon::Daemon;
pub use front::Front;
pub use line::Line;
pub use memory::Memory;
pub use ring::{Part, Ring};
