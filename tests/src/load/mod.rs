//! A load that checks everything: each block says where it belongs and how often it has been written, each completion
//! is counted, and a model knows what every block may hold at every moment.
//!
//! * [`block`]: what is in a block
//! * [`shadow`]: what must be there
//! * [`queue`]: requests of all kinds and sizes, at full depth, through one channel
//! * [`pulse`]: when what died came back to life
//!
//! The load is an honest guest that is silent about restarts: it has no idea that there are any.

pub mod block;
pub mod pulse;
pub mod queue;
pub mod run;
pub mod shadow;

pub use pulse::Pulse;
pub use queue::{Queue, Tally};
pub use run::{Load, Shape};
pub use shadow::Shadow;
