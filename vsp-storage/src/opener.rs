//! Opens a disk for another process of this device, which cannot open anything any more (`--open-for`).
//!
//! It runs outside of any compartment, with the rights of whoever started it, and ends at once. It must never take the disk's locks:
//! they go with the descriptors that it gives away.

use std::os::fd::{AsFd, RawFd};

use vsp::ipc::socket::Peer;

use crate::cli::DiskSpec;
use crate::control::{Wanted, json};
use crate::disk::{self, Given};

/// Opens the only one of `disks` and gives it to whoever has the other end of the inherited socket `socket`: what to say to the process
/// that is to serve it, and its descriptors. An error is given instead; this one means that nobody listens.
pub fn run(device: &str, disks: &[DiskSpec], socket: RawFd) -> Result<(), String> {
    let peer = Peer::inherited(socket).map_err(|error| error.to_string())?;
    let sent = match open(device, disks) {
        Ok((disk, given)) => {
            let Given { file, keeper, shape } = given;
            let wanted = Wanted::Add { disk, shape, keeper: keeper.is_some() };
            let fds: Vec<_> = [Some(&file), keeper.as_ref()].into_iter().flatten().map(AsFd::as_fd).collect();
            peer.send(&Ok::<_, String>(json(&wanted)), &fds)
        }
        Err(why) => peer.send(&Err::<String, _>(why), &[]),
    };
    sent.map_err(|error| error.to_string())
}

fn open(device: &str, disks: &[DiskSpec]) -> Result<(DiskSpec, Given), String> {
    let [disk] = disks else { return Err("one --disk is opened at a time".into()) };
    let lun = disk.lun.ok_or("the disk has no LUN: write lun=N")?;
    let given = disk::gather(disk).map_err(|error| error.to_string())?;
    let shape = given.shape;
    // Whatever is wrong with it is said here, before anything has changed.
    let checked = disk::adopt(device, lun, disk, given).map_err(|error| error.to_string())?;
    Ok((disk.clone(), Given { file: checked.file, keeper: checked.keeper, shape }))
}
