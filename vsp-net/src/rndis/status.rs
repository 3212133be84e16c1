//! Outcomes of requests (`RNDIS_STATUS_*`).

/// An outcome. Only those that we say have names.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct RndisStatus(pub u32);

impl RndisStatus {
    /// Done.
    pub const SUCCESS: RndisStatus = RndisStatus(0);
    /// Failed for no reason of the guest's.
    pub const FAILURE: RndisStatus = RndisStatus(0xC000_0001);
    /// Nothing to do it with.
    pub const RESOURCES: RndisStatus = RndisStatus(0xC000_009A);
    /// There is no such object here.
    pub const NOT_SUPPORTED: RndisStatus = RndisStatus(0xC000_00BB);
    /// Not with this device's policy.
    pub const NOT_ACCEPTED: RndisStatus = RndisStatus(0x0001_0003);
    /// Not in this version.
    pub const BAD_VERSION: RndisStatus = RndisStatus(0xC001_0004);
    /// No room for another multicast address.
    pub const MULTICAST_FULL: RndisStatus = RndisStatus(0xC001_0009);
    /// The multicast address is there already.
    pub const MULTICAST_EXISTS: RndisStatus = RndisStatus(0xC001_000A);
    /// The multicast address is not there.
    pub const MULTICAST_NOT_FOUND: RndisStatus = RndisStatus(0xC001_000B);
    /// The device is not initialised.
    pub const ADAPTER_NOT_READY: RndisStatus = RndisStatus(0xC001_0011);
    /// The value has not the length that it should have.
    pub const INVALID_LENGTH: RndisStatus = RndisStatus(0xC001_0014);
    /// The value makes no sense.
    pub const INVALID_DATA: RndisStatus = RndisStatus(0xC001_0015);
    /// The object can be asked, not set; or the other way around.
    pub const INVALID_OID: RndisStatus = RndisStatus(0xC001_0017);

    /// Whether it went well.
    pub fn is_success(self) -> bool {
        self == RndisStatus::SUCCESS
    }
}

impl std::fmt::Debug for RndisStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RndisStatus({:#010x})", self.0)
    }
}

impl std::fmt::Display for RndisStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RNDIS status {:#010x}", self.0)
    }
}
