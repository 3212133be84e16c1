//! Versions of the VMBus protocol, and what each of them changed.
//!
//! The guest proposes exactly one version in each initiate-contact message, newest first, until the host says
//! yes; so the host answers yes or no and never proposes another.

use core::fmt;

/// A version of the protocol that we speak: 16 bits of major, 16 bits of minor number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Version(u32);

impl Version {
    /// 2.4: Windows 8 and Server 2012.
    pub const WIN8: Self = Self(0x0002_0004);
    /// 3.0: Windows 8.1 and Server 2012 R2.
    pub const WIN8_1: Self = Self(0x0003_0000);
    /// 4.0: Windows 10.
    pub const WIN10: Self = Self(0x0004_0000);
    /// 4.1: Windows 10 RS3; a channel's target VP can change.
    pub const V4_1: Self = Self(0x0004_0001);
    /// 5.0: the connection id of messages is told in the version response.
    pub const V5_0: Self = Self(0x0005_0000);
    /// 5.1: Windows 10 RS4.
    pub const V5_1: Self = Self(0x0005_0001);
    /// 5.2: Server 2019; the first one for isolated partitions.
    pub const V5_2: Self = Self(0x0005_0002);
    /// 5.3: Server 2022; a modify-channel message is answered.
    pub const V5_3: Self = Self(0x0005_0003);

    /// Every version that we speak, newest first: the order in which a guest proposes them.
    pub const ALL: [Self; 8] =
        [Self::V5_3, Self::V5_2, Self::V5_1, Self::V5_0, Self::V4_1, Self::WIN10, Self::WIN8_1, Self::WIN8];
    /// The newest version that we speak.
    pub const NEWEST: Self = Self::V5_3;

    /// The version with this wire value, if we speak it.
    pub fn from_raw(raw: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|version| version.0 == raw)
    }

    /// The wire value.
    pub const fn raw(self) -> u32 {
        self.0
    }

    /// The major number.
    pub const fn major(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// The minor number.
    pub const fn minor(self) -> u16 {
        self.0 as u16
    }

    /// The host's answer to a proposal: the version itself if we speak it and it is not newer than `newest`.
    pub fn negotiate(proposed: u32, newest: Self) -> Option<Self> {
        Self::from_raw(proposed).filter(|&version| version <= newest)
    }

    /// The initiate-contact message names a SINT instead of an interrupt page, and later messages go to the
    /// connection id in the version response.
    pub fn names_message_sint(self) -> bool {
        self >= Self::V5_0
    }

    /// The guest may send modify-channel messages.
    pub fn has_modify_channel(self) -> bool {
        self >= Self::V4_1
    }

    /// A modify-channel message is answered.
    pub fn answers_modify_channel(self) -> bool {
        self >= Self::V5_3
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major(), self.minor())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn only_known_versions_up_to_the_newest_are_accepted() {
        assert_eq!(Version::negotiate(0x0005_0003, Version::NEWEST), Some(Version::V5_3));
        assert_eq!(Version::negotiate(0x0005_0003, Version::V5_0), None);
        assert_eq!(Version::negotiate(0x0006_0000, Version::NEWEST), None);
        assert_eq!(Version::negotiate(0x0001_0001, Version::NEWEST), None);
        assert_eq!(Version::negotiate(0x0002_0004, Version::NEWEST), Some(Version::WIN8));
    }

    #[test]
    fn they_are_ordered_and_readable() {
        assert!(Version::ALL.is_sorted_by(|a, b| a > b));
        assert_eq!(Version::V5_3.to_string(), "5.3");
        assert_eq!(Version::WIN8.to_string(), "2.4");
    }
}
