//! TAP and macvtap interfaces as descriptors, and TAPs that outlive who made them: `/dev/net/tun` and its `ioctl`s.
//!
//! The numbers and the structure are those of `linux/if_tun.h` and `linux/if.h`. Nothing is read from or written to an interface here.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::errno::Errno;

/// Bytes of `struct virtio_net_hdr` without the count of merged buffers: what is before each frame.
const HEADER: libc::c_int = 10;

const IFF_TAP: libc::c_short = 0x0002;
const IFF_NO_PI: libc::c_short = 0x1000;
const IFF_VNET_HDR: libc::c_short = 0x4000;
const IFF_MULTI_QUEUE: libc::c_short = 0x0100;

/// `struct ifreq`: a name, and of the union only the flags.
#[repr(C)]
pub struct Request {
    name: [u8; 16],
    flags: libc::c_short,
    rest: [u8; 22],
}

/// `TUNSETIFF` (both ways: the kernel writes the name), `TUNSETPERSIST`, `TUNSETOWNER`, `TUNSETVNETHDRSZ`.
mod calls {
    use super::Request;

    const fn code(number: u8) -> libc::c_ulong {
        nix::request_code_write!(b'T', number, size_of::<libc::c_int>())
    }

    nix::ioctl_readwrite_bad!(set_interface, code(202), Request);
    nix::ioctl_write_int_bad!(set_persistent, code(203));
    nix::ioctl_write_int_bad!(set_owner, code(204));
    nix::ioctl_write_ptr_bad!(set_header_size, code(216), libc::c_int);
}
use calls::{set_header_size, set_interface, set_owner, set_persistent};

/// Why an interface could not be opened or made; the text says what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such device file.
    #[error("cannot open {path}: {error}{}", hint(.error))]
    Device {
        /// The device file.
        path: String,
        /// Why not.
        error: io::Error,
    },
    /// Somebody else's, or to be made by somebody who may.
    #[error(
        "the TAP {0} is not there, or not yours: make it, for the user who runs the VM (sudo bulkhead net port add {0} --owner USER)"
    )]
    NotYours(String),
    /// In use.
    #[error("the interface {0} is in use by another process: stop that, or name another one")]
    Busy(String),
    /// Its kind or its number of queues is another one.
    #[error(
        "the interface {0} is no TAP, or has one queue and was to have several: make it anew (bulkhead net port remove, add)"
    )]
    Kind(String),
    /// Anything else.
    #[error("cannot use the interface {name}: {error}")]
    Other {
        /// The interface.
        name: String,
        /// Why not.
        error: io::Error,
    },
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => "; load the kernel's module (sudo modprobe tun)",
        io::ErrorKind::PermissionDenied => "; give the user who runs the VM the right to",
        _ => "",
    }
}

/// Opens the TAP `name`, which is there already, once for each of `queues`.
pub fn open_tap(name: &str, queues: u32) -> Result<Vec<OwnedFd>, Error> {
    let device = Path::new("/dev/net/tun");
    let open = |flags| (0..queues.max(1)).map(|_| attach(device, name, flags)).collect();
    match open(IFF_MULTI_QUEUE) {
        // One that was made for a single queue.
        Err(Error::Kind(_)) if queues <= 1 => open(0),
        opened => opened,
    }
}

/// Opens the macvtap `name`, the interface with that number, in the same way.
pub fn open_macvtap(name: &str, index: u32, queues: u32) -> Result<Vec<OwnedFd>, Error> {
    let device = format!("/dev/tap{index}");
    let flags = if queues > 1 { IFF_MULTI_QUEUE } else { 0 };
    (0..queues.max(1)).map(|_| attach(Path::new(&device), name, flags)).collect()
}

/// Makes a TAP that stays, or takes the one that is there; of `owner`, if one is named.
pub fn make_tap(name: &str, owner: Option<u32>) -> Result<(), Error> {
    let fd = attach(Path::new("/dev/net/tun"), name, IFF_MULTI_QUEUE)?;
    let failed = |error: Errno| Error::Other { name: name.to_owned(), error: error.into() };
    if let Some(owner) = owner {
        let owner = libc::c_int::try_from(owner).map_err(|_| failed(Errno::EINVAL))?;
        // SAFETY: the descriptor is open; the argument is a number.
        unsafe { set_owner(fd.as_raw_fd(), owner) }.map_err(failed)?;
    }
    // SAFETY: as above.
    unsafe { set_persistent(fd.as_raw_fd(), 1) }.map_err(failed)?;
    Ok(())
}

fn attach(device: &Path, name: &str, flags: libc::c_short) -> Result<OwnedFd, Error> {
    let open =
        File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open(device);
    let fd =
        OwnedFd::from(open.map_err(|error| Error::Device { path: device.display().to_string(), error })?);
    let mut request =
        Request { name: [0; 16], flags: IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | flags, rest: [0; 22] };
    // The last byte stays zero.
    for (to, from) in request.name.iter_mut().take(15).zip(name.bytes()) {
        *to = from;
    }
    // SAFETY: the descriptor is open, and the kernel reads and writes one `struct ifreq`, as large as `Request`.
    let set = unsafe { set_interface(fd.as_raw_fd(), &raw mut request) };
    // SAFETY: the kernel reads one number.
    let set = set.and_then(|_| unsafe { set_header_size(fd.as_raw_fd(), &HEADER) });
    let name = name.to_owned();
    match set {
        Ok(_) => Ok(fd),
        Err(Errno::EPERM) => Err(Error::NotYours(name)),
        Err(Errno::EBUSY) => Err(Error::Busy(name)),
        Err(Errno::EINVAL) => Err(Error::Kind(name)),
        Err(error) => Err(Error::Other { name, error: error.into() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_as_large_as_the_kernels() {
        assert_eq!(size_of::<Request>(), size_of::<libc::ifreq>());
        assert_eq!(std::mem::offset_of!(Request, flags), 16);
        assert_eq!(nix::request_code_write!(b'T', 202, size_of::<libc::c_int>()), 0x4004_54ca);
    }
}
