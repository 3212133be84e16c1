//! The command line of this face.

use std::os::fd::RawFd;
use std::path::PathBuf;

use clap::Args;

/// Where front ends connect. Flatten it into the device's own options.
#[derive(Clone, Debug, Default, Args)]
pub struct Listen {
    /// Serve a virtio guest: listen here for a front end of vhost-user (QEMU, Cloud Hypervisor, crosvm). One at a time; when it has left the
    /// next one is waited for
    #[arg(long, value_name = "SOCKET", conflicts_with_all = ["vhost_user_fd", "core", "core_fd"], help_heading = "Attaching")]
    pub vhost_user: Option<PathBuf>,

    /// The same on an inherited socket that listens already; 3 under systemd's socket activation
    #[arg(long, value_name = "FD", conflicts_with_all = ["core", "core_fd"], help_heading = "Attaching")]
    pub vhost_user_fd: Option<RawFd>,
}

impl Listen {
    /// Whether this face is wanted.
    pub fn is_wanted(&self) -> bool {
        self.vhost_user.is_some() || self.vhost_user_fd.is_some()
    }
}
