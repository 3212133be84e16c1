//! What the VMBus server asks of a partition. Two implement it: KVM here, and the software
//! partition of the whole-system tests, whose guest is an ordinary process.

use std::os::fd::BorrowedFd;

use crate::memory::donation::Follow;

/// The SINT on which VMBus messages and events arrive (`VMBUS_MESSAGE_SINT` in Linux' `asm/mshyperv.h`).
pub const VMBUS_SINT: u8 = 2;

/// Where an interrupt goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// Index of the VP.
    pub vp: u32,
    /// Its vector there, 16 or higher.
    pub vector: u8,
}

/// Doorbells, interrupts and device memory of one partition; page moves come by [`Follow`], which KVM does by itself.
pub trait Partition: Follow {
    /// From now on `HvSignalEvent` on `connection` writes `kick`.
    fn bind_doorbell(&self, connection: u32, kick: BorrowedFd<'_>) -> std::io::Result<()>;

    /// Undoes [`Self::bind_doorbell`]; nothing happens if the connection is not bound.
    fn unbind_doorbell(&self, connection: u32);

    /// The eventfd which raises [`VMBUS_SINT`] on `vp`, for device processes.
    fn interrupt(&self, vp: u32) -> BorrowedFd<'_>;

    /// Raises [`VMBUS_SINT`] on `vp` for a message of ours.
    fn message_interrupt(&self, vp: u32);

    /// From now on the guest sees `bytes` bytes of `file` from byte `offset` on at `gpa`: whole pages where there is neither RAM nor another such
    /// mapping. The file may stop to answer at any moment, and nobody but the guest looks into it: see [`crate::server::Server::region_fault`].
    fn map_device_memory(
        &self,
        gpa: u64,
        file: BorrowedFd<'_>,
        offset: u64,
        bytes: u64,
    ) -> std::io::Result<()>;

    /// Undoes [`Self::map_device_memory`]; nothing happens if nothing is mapped there. If it fails, the guest still sees it.
    fn unmap_device_memory(&self, gpa: u64) -> std::io::Result<()>;

    /// VP `vp` waits for what [`crate::server::Server::access`] could not answer at once: this is it. One that does not wait any more has no use
    /// for it.
    fn access_done(&self, vp: u32, value: u64);

    /// From now on `bell` raises an interrupt. `route` names it, a small number that is free; the bell is attached to nothing else of the partition's.
    fn route_interrupt(&self, route: u32, to: Target, bell: BorrowedFd<'_>) -> std::io::Result<()>;

    /// The interrupt is raised elsewhere from now on.
    fn move_interrupt(&self, route: u32, to: Target) -> std::io::Result<()>;

    /// Undoes [`Self::route_interrupt`].
    fn end_interrupt(&self, route: u32, bell: BorrowedFd<'_>);

    /// While `on`, whoever runs the partition calls [`crate::server::Server::end_of_message`] each time
    /// `vp` ends a message. Asked for only while a message waits: the notification also comes with every
    /// device interrupt on the SINT, and the core has no business there.
    fn watch_end_of_message(&self, vp: u32, on: bool);
}

/// SynIC registers of a VP that the server needs, as last written by the guest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SynicRegisters {
    /// `SCONTROL`; bit 0 enables.
    pub control: u64,
    /// `SIEFP`; bit 0 enables, the page address above.
    pub event_page: u64,
    /// `SIMP`; bit 0 enables, the page address above.
    pub message_page: u64,
}

/// Status of a hypercall (TLFS, appendix "Hypercall status codes").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum HvStatus {
    /// `HV_STATUS_SUCCESS`
    Success = 0,
    /// `HV_STATUS_INVALID_HYPERCALL_INPUT`
    InvalidHypercallInput = 3,
    /// `HV_STATUS_INVALID_ALIGNMENT`
    InvalidAlignment = 4,
    /// `HV_STATUS_INVALID_PARAMETER`
    InvalidParameter = 5,
    /// `HV_STATUS_INVALID_CONNECTION_ID`
    InvalidConnectionId = 18,
    /// `HV_STATUS_INSUFFICIENT_BUFFERS`; Linux retries.
    InsufficientBuffers = 19,
}
