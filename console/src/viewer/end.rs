//! How it ends with a viewer.

use std::io;

use thiserror::Error;

use crate::rfb::Fault;

/// Why a viewer is gone.
#[derive(Debug, Error)]
pub enum End {
    /// It went.
    #[error("it has closed the connection")]
    Closed,
    /// The connection broke.
    #[error("the connection: {0}")]
    Stream(#[from] io::Error),
    /// It was cut off.
    #[error("{0}")]
    Fault(#[from] Fault),
    /// It is not the only one.
    #[error("there are as many viewers as there may be")]
    Full,
    /// Nobody knows it, and others have come who are not known either.
    #[error("others have come, and it had not shown yet that it may look")]
    Crowded,
    /// It did not ask for anything in time.
    #[error("its handshake took too long")]
    Late,
    /// It asks without listening.
    #[error("it asks for answers and does not read them")]
    Deaf,
}
