//! SCSI as a direct-access block device speaks it (SPC-4, SBC-3): commands in, plans and answers out. Pure: no
//! disk, no guest memory, nothing that can fail but the guest's request.

pub mod cdb;
pub mod inquiry;
pub mod mode;
pub mod plan;
pub mod sense;
pub mod unmap;

pub use cdb::Command;
pub use plan::{Plan, Repeat, Unit, plan};
pub use sense::Sense;
