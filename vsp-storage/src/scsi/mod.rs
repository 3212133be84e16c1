//! SCSI as a direct-access block device speaks it (SPC-4, SBC-3): commands in, plans and answers out. Pure: no
//! disk, no guest memory, nothing that can fail but the guest's request.

mod answers;
pub mod attention;
pub mod bytes;
pub mod cdb;
pub mod condition;
pub mod inquiry;
pub mod mode;
pub mod opcodes;
pub mod plan;
pub mod reserve;
pub mod sense;
pub mod unmap;

pub use attention::Attention;
pub use cdb::Command;
pub use condition::Condition;
pub use plan::{Plan, Repeat, Unit, plan, plan_command};
pub use sense::Sense;
