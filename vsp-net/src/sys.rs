//! The kernel's side of the backends; the only unsafe code of this crate.
//!
//! Each function is one system call. What it moves is private memory, given as slices, or shared memory, given as spans
//! that hold its mapping; nothing here keeps a pointer beyond the call.

mod descriptor;
mod socket;
mod tun;
mod vectors;

pub(crate) use descriptor::adopt;
pub(crate) use socket::{discard, peek, peek_offset, send_message, set_peek_offset};
pub(crate) use tun::{
    ATTACH, DETACH, interface, interface_index, join_interface, set_header_size, set_offload, set_queue,
};
pub(crate) use vectors::{gather, scatter};

use std::io;

/// A call's result; an interrupted one is made again.
fn retry(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        if let Ok(result) = usize::try_from(call()) {
            return Ok(result);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
